// Command mutants puts deliberate bugs, one by one, into a copy of natsflow and runs the tests that should catch each. A
// mutant that they don't catch survives, and the command fails.
//
//	go run ./internal/mutants [-run REGEXP]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// limit is how long the tests of one mutant may take: a hang counts as caught.
const limit = 90 * time.Second

func main() {
	pattern := flag.String("run", "", "only the mutants whose name matches this `regexp`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	survivors, err := hunt(ctx, *pattern)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if survivors > 0 {
		os.Exit(1)
	}
}

// hunt tries the mutants and returns how many survived.
func hunt(ctx context.Context, pattern string) (survivors int, err error) {
	which, err := regexp.Compile(pattern)
	if err != nil {
		return 0, err
	}
	root, err := module(ctx, "example.com/flow/natsflow")
	if err != nil {
		return 0, err
	}
	core, err := module(ctx, "example.com/flow")
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := copyTree(root, dir, core); err != nil {
		return 0, err
	}
	for _, m := range mutants {
		if !which.MatchString(m.name) {
			continue
		}
		began := time.Now()
		caught, how, err := m.try(ctx, dir)
		if err != nil {
			return survivors, fmt.Errorf("%s: %w", m.name, err)
		}
		if !caught {
			survivors++
		}
		fmt.Printf("%-55s %s (%v)\n", m.name, how, time.Since(began).Round(time.Second))
	}
	return survivors, nil
}

// module is the folder of a module.
func module(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		return "", fmt.Errorf("find the source of %s: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// copyTree copies the module in root to dir. core is where the module flow is.
func copyTree(root, dir, core string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if rel == "go.mod" {
			text = []byte(strings.Replace(string(text), "=> ../", "=> "+core, 1))
		}
		return os.WriteFile(filepath.Join(dir, rel), text, 0o644)
	})
}

// fits returns an error unless the old text stands exactly once in the source: a list that has rotted is no proof.
func (m mutant) fits(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, m.file))
	if err != nil {
		return err
	}
	if n := strings.Count(string(text), m.before); n != 1 {
		return fmt.Errorf("its text is found %d times in %s, want once:\n%s", n, m.file, m.before)
	}
	return nil
}

// try puts m into the copy in dir, runs its tests, and takes it out again.
func (m mutant) try(ctx context.Context, dir string) (caught bool, how string, err error) {
	if err := m.fits(dir); err != nil {
		return false, "", err
	}
	path := filepath.Join(dir, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return false, "", err
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), m.before, m.after, 1)), 0o644); err != nil {
		return false, "", err
	}
	defer func() { err = errors.Join(err, os.WriteFile(path, text, 0o644)) }()
	pkg := "./" + filepath.Dir(m.file)
	if m.tests != "" {
		pkg = m.tests
	}
	build := exec.CommandContext(ctx, "go", "vet", pkg)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return false, "", fmt.Errorf("it does not build: %w\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(ctx, limit+time.Minute)
	defer cancel()
	test := exec.CommandContext(ctx, "go", "test", "-failfast", "-timeout", limit.String(), "-run", m.run, pkg)
	test.Dir = dir
	out, err := test.CombinedOutput()
	if err == nil {
		return false, "SURVIVED", nil
	}
	by := regexp.MustCompile(`--- FAIL: (\w+)`).FindStringSubmatch(string(out))
	switch {
	case by != nil:
		return true, "caught by " + by[1], nil
	case strings.Contains(string(out), "panic: test timed out"):
		return true, "caught: the tests hang", nil
	default:
		return true, "caught: the tests crash", nil
	}
}
