package main

import (
	"syscall"
	"time"
)

// cpuTime is the processor time that this process has used, on all cores.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // there is no other way to measure it
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
