// Package report is what the programs that measure write their reports with.
package report

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Machine says what the numbers were measured on, and when.
func Machine(cores int) string {
	parts := []string{
		cpuName(), fmt.Sprintf("%d of %d cores", cores, runtime.NumCPU()),
		runtime.GOOS + "/" + runtime.GOARCH, runtime.Version(), time.Now().Format(time.DateOnly),
	}
	if load := loadAverage(); load != "" {
		parts = append(parts, "load average before the run "+load)
	}
	return strings.Join(parts, ", ")
}

func cpuName() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // elsewhere it says less
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// loadAverage is that of the last minute: a hint at whether others used the machine.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
