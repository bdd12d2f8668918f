package natstest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// CPU is how long the servers that run have been busy. It is 0 where there is no /proc.
func (c *Cluster) CPU() (total time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.procs {
		if p != nil {
			total += busy(p.cmd.Process.Pid)
		}
	}
	return total
}

// busy is the user and system time of a process, in Linux's ticks of 10 ms.
func busy(pid int) (total time.Duration) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	const user, system = 11, 12 // fields behind the command's name, which may have anything in it
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, i := range []int{user, system} {
		if i >= len(fields) {
			return 0
		}
		ticks, _ := strconv.Atoi(fields[i])
		total += time.Duration(ticks) * 10 * time.Millisecond
	}
	return total
}
