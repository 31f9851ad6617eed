package machine

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
)

// Job is a program that a machine runs.
type Job struct {
	Dir  string   // where, below the payload
	Args []string // the program, from there or from the machine's PATH, and its arguments
}

const initFile = "init" // of the payload; the machine's first process

// The machine's first process does what an init system and the packages of the
// engine would. Of modules it loads only what nothing asks for by itself. File 3
// is the port.
const (
	initHead = `export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
export ISTHMUS_LAB_TOOL=` + payloadDir + `/` + toolFile + `
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /dev/pts /dev/shm /run/lock
ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -a br_netfilter overlay
ip link set lo up
hostname machine
exec 3>/dev/vport0p1
`
	initUp  = `echo "%s up $(uname -r)" >&3` + "\n"
	initJob = `cd %[2]s && %[3]s </dev/null >&3 2>&3
printf '\n%%s end %%d\n' %[1]s $? >&3
`
	initTail = "poweroff -f 2>/dev/null || busybox poweroff -f\n"
)

// initOf writes the program of the machine's first process. mark begins the lines
// that tell how it goes, among those that the jobs print.
func initOf(mark string, jobs []Job) string {
	var b strings.Builder
	b.WriteString(initHead)
	fmt.Fprintf(&b, initUp, mark)
	for _, j := range jobs {
		args := make([]string, len(j.Args))
		for i, a := range j.Args {
			args[i] = quoted(a)
		}
		fmt.Fprintf(&b, initJob, mark, quoted(payloadDir+"/"+j.Dir), strings.Join(args, " "))
	}
	b.WriteString(initTail)
	return b.String()
}

// quoted is a word of the shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// mark draws what no job prints.
func newMark() string { return "@" + rand.Text() }

// told understands a line that begins with the mark.
func told(mark, line string) (up string, status int, ok bool) {
	rest, ours := strings.CutPrefix(line, mark+" ")
	if !ours {
		return "", 0, false
	}
	if version, is := strings.CutPrefix(rest, "up "); is {
		return version, 0, true
	}
	if code, is := strings.CutPrefix(rest, "end "); is {
		status, err := strconv.Atoi(code)
		return "", status, err == nil
	}
	return "", 0, false
}
