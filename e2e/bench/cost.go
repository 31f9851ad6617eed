package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// An end is one end of a path: a network namespace and its address there.
type end struct {
	space string // file that stands for it
	addr  netip.Addr
}

// packets is how many go each way in one batch.
const packets = 500

// costs returns what the kernel spends on a round trip of two small UDP packets
// over each path, in microseconds of processor time: each packet is carried
// through both hosts by the thread that sends it, nobody is woken and nobody
// waits, so that other load on the machine changes little. Batches of all paths
// are interleaved; the result is the fastest tenth of each.
func costs(paths [][2]end, batches int) ([]float64, error) {
	var out []float64
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, elsewhere now, ends with the goroutine
		done <- func() error {
			var cpu unix.CPUSet
			cpu.Set(runtime.NumCPU() - 1)
			if err := unix.SchedSetaffinity(0, &cpu); err != nil {
				return fmt.Errorf("stay on one processor: %w", err)
			}
			var pairs [][2]int
			for _, p := range paths {
				pair, err := connected(p)
				defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
				if err != nil {
					return err
				}
				pairs = append(pairs, pair)
			}
			spent := make([][]float64, len(pairs))
			for range batches {
				for i, pair := range pairs {
					t, err := batch(pair)
					if err != nil {
						return fmt.Errorf("from %s to %s: %w", paths[i][0].addr, paths[i][1].addr, err)
					}
					spent[i] = append(spent[i], t)
				}
			}
			for _, s := range spent {
				slices.Sort(s)
				out = append(out, s[len(s)/10])
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("measure processor time: %w", err)
	}
	return out, nil
}

// connected opens a UDP socket at each end, connected to the other one.
func connected(ends [2]end) (pair [2]int, err error) {
	pair = [2]int{-1, -1}
	at := func(e end) *unix.SockaddrInet4 { return &unix.SockaddrInet4{Port: 7777, Addr: e.addr.As4()} }
	for i, e := range ends {
		f, err := os.Open(e.space)
		if err != nil {
			return pair, err
		}
		err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		_ = f.Close()
		if err != nil {
			return pair, fmt.Errorf("enter %s: %w", e.space, err)
		}
		if pair[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return pair, err
		}
		if err := errors.Join(unix.Bind(pair[i], at(e)), unix.Connect(pair[i], at(ends[1-i]))); err != nil {
			return pair, fmt.Errorf("connect %s: %w", e.addr, err)
		}
	}
	return pair, nil
}

// batch returns the microseconds of processor time of one round trip.
func batch(pair [2]int) (float64, error) {
	buffer := make([]byte, 8)
	start, err := processorTime()
	if err != nil {
		return 0, err
	}
	for n := range 2 * packets {
		from, to := pair[n%2], pair[1-n%2]
		if _, err := unix.Write(from, buffer[:1]); err != nil {
			return 0, err
		}
		for sent := time.Now(); ; {
			_, err := unix.Read(to, buffer)
			if err == nil {
				break
			}
			if err != unix.EAGAIN && err != unix.EINTR {
				return 0, err
			}
			if time.Since(sent) > time.Second {
				return 0, errors.New("a packet was lost")
			}
		}
	}
	stop, err := processorTime()
	return float64((stop - start).Nanoseconds()) / 1000 / packets, err
}

// processorTime is that of the calling thread.
func processorTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}
