package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

func lookPath(name string) (string, error) {
	program, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("run %s: %w", name, err)
	}
	return program, nil
}

// background starts a command that outlives this process, as a child of the
// host's first process, with its output appended to file.
func background(file string, args []string) error {
	program, err := lookPath(args[0])
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(program, args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	fmt.Println(cmd.Process.Pid)
	os.Exit(0)
	return nil
}
