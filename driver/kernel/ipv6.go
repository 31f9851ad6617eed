package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// allowIPv6 switches IPv6 on for an interface of the calling thread's network
// namespace. The thread must be thrown away afterwards.
func allowIPv6(name string) error {
	if err := writeIPv6(name, "disable_ipv6", "0"); err != nil {
		return fmt.Errorf("enable IPv6 on %s: %w", name, err)
	}
	return nil
}

// setIPv6 changes a setting of IPv6 in the same way, where there is IPv6.
func setIPv6(name, setting, value string) error {
	if err := writeIPv6(name, setting, value); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set %s of %s to %s: %w", setting, name, value, err)
	}
	return nil
}

func writeIPv6(name, setting, value string) error {
	file := "/proc/sys/net/ipv6/conf/" + name + "/" + setting
	if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	err := os.WriteFile(file, []byte(value), 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		// A managed plugin has /proc/sys read-only; a view of one's own is not.
		if err = ownProc(); err == nil {
			err = os.WriteFile(file, []byte(value), 0)
		}
	}
	return err
}

// ownProc gives the calling thread a mount namespace with a fresh /proc. Such
// a thread must not be used for anything else afterwards.
func ownProc() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}
