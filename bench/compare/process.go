package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Each measurement runs in a process of its own, this program again with its job in the environment: so none inherits
// another's heap, goroutines or grown stacks.

const (
	jobVariable = "FLOW_COMPARE_JOB"
	jobTimeout  = 3 * time.Minute
)

// answer is what such a process prints.
type answer struct {
	Result result
	Not    bool   // the contender can't do it
	Err    string // what went wrong
}

// work does the job that this process was started for, if it was.
func work() (done bool) {
	said, ok := os.LookupEnv(jobVariable)
	if !ok {
		return false
	}
	var a answer
	var j job
	err := json.Unmarshal([]byte(said), &j)
	if r := rowNamed(j.Row); err == nil && r != nil {
		a.Result, err = r.measure(j)
	}
	if errors.Is(err, errNot) {
		a.Not = true
	} else if err != nil {
		a.Err = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(a)
	return true
}

// start has a fresh process do j on so many cores, and waits.
func start(j job, cores int) (answer, error) {
	said, err := json.Marshal(j)
	if err != nil {
		return answer{}, err
	}
	program, err := os.Executable()
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(said), "GOMAXPROCS="+strconv.Itoa(cores))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		first, _, _ := strings.Cut(stderr.String(), "\n")
		return answer{}, fmt.Errorf("%s, %s, %s: %w: %s", j.Row, j.Column, j.Contender, err, first)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return answer{}, err
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s, %s, %s: %s", j.Row, j.Column, j.Contender, a.Err)
	}
	return a, nil
}
