package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// mutant is a bug to be put into a copy of the library.
type mutant struct {
	name  string
	edits []edit
	run   string // a pattern of the tests that should catch it
	race  bool   // they need the race detector to do so
	sound bool   // it is none: the source as it is
}

// edit replaces the one place where file says old.
type edit struct{ file, old, new string }

// bug is a mutant of one edit.
func bug(name, run, file, before, after string) mutant {
	return mutant{name: name, run: run, edits: []edit{{file, before, after}}}
}

// verdict is what the tests said to a mutant.
type verdict struct {
	caught bool
	by     string // the test that failed, or in which the tests hung or crashed
	how    string
	took   time.Duration
}

// lab is a copy of the library's source in which one mutant lives at a time.
type lab struct {
	dir   string
	short bool
}

// newLab copies the module in from to dir: without the modules nested in it and without what is hidden.
func newLab(from, dir string, short bool) (*lab, error) {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, noModule := os.Stat(filepath.Join(path, "go.mod"))
			if path != from && (strings.HasPrefix(d.Name(), ".") || noModule == nil) {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		}
		if !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), text, 0o644)
	})
	if err != nil {
		return nil, fmt.Errorf("copy the source: %w", err)
	}
	return &lab{dir: dir, short: short}, nil
}

// fits says whether each old text stands exactly once in the source: a list that has rotted must not pass for a proof.
func (m mutant) fits(dir string) error {
	for _, e := range m.edits {
		text, err := os.ReadFile(filepath.Join(dir, e.file))
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return fmt.Errorf("%s: its text is found %d times in %s, want once:\n%s", m.name, n, e.file, e.old)
		}
	}
	return nil
}

// tryAlone puts m into the source, builds it, runs its tests, and puts the source back.
func (l *lab) tryAlone(ctx context.Context, m mutant) (v verdict, err error) {
	if err := m.fits(l.dir); err != nil {
		return v, err
	}
	for _, e := range m.edits {
		path := filepath.Join(l.dir, e.file)
		text, err := os.ReadFile(path)
		if err != nil {
			return v, err
		}
		changed := strings.Replace(string(text), e.old, e.new, 1)
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			return v, err
		}
		defer func() { err = errors.Join(err, os.WriteFile(path, text, 0o644)) }()
	}
	if out, err := l.build(ctx, m.race); err != nil {
		return v, fmt.Errorf("%s: the mutant does not build: %w\n%s", m.name, err, out)
	}
	return l.test(ctx, m, 0)
}

// A suite is a package with tests of the library, and one binary.
type suite struct {
	dir    string
	binary string
	rapid  bool // it draws random scripts, and takes the flags that say how many
}

// suites are in the order in which they are asked: what catches most is first.
var suites = []suite{
	{dir: ".", binary: "flow.test", rapid: true},
	{dir: "internal/modeltest", binary: "modeltest.test", rapid: true},
	{dir: "internal/batchtest", binary: "batchtest.test"},
	{dir: "internal/sessiontest", binary: "sessiontest.test", rapid: true},
	{dir: "internal/grpctest", binary: "grpctest.test"},
}

// build builds the tests. It returns what the compiler says if it fails.
func (l *lab) build(ctx context.Context, race bool) (out []byte, err error) {
	args := []string{"test", "-c", "-trimpath", "-ldflags=-s -w", "-gcflags=-e", "-o", l.dir}
	if race {
		args = append(args, "-race")
	}
	for _, s := range suites {
		args = append(args, "./"+s.dir)
	}
	build := exec.CommandContext(ctx, "go", args...)
	build.Dir = l.dir
	return build.CombinedOutput()
}

// The tests of a mutant may take testTime in each suite; what takes longer hangs, which is how many bugs show.
const testTime = time.Minute

// test runs the tests that should catch m, which is number n of a bundle, up to the first that does. 0 is no mutant.
func (l *lab) test(ctx context.Context, m mutant, n int) (verdict, error) {
	v := verdict{by: "nothing", how: "SURVIVES"}
	start := time.Now()
	found := false
	for _, s := range suites {
		out, failed, err := l.runSuite(ctx, s, m, n)
		if err != nil {
			return v, fmt.Errorf("%s: %w", m.name, err)
		}
		found = found || began.Match(out)
		if failed {
			v.caught = true
			v.by, v.how = culprit(out)
			break
		}
	}
	v.took = time.Since(start)
	if !found {
		return v, fmt.Errorf("%s: no test matches %s", m.name, m.run)
	}
	return v, nil
}

// runSuite runs the tests of a suite that should catch m, and returns what they print and whether they failed. That the
// binary can't be run at all is an error.
func (l *lab) runSuite(ctx context.Context, s suite, m mutant, n int) (out []byte, failed bool, err error) {
	limit := testTime
	if m.sound {
		limit *= 15
	}
	args := []string{"-test.v", "-test.failfast", "-test.timeout=" + limit.String(), "-test.run=" + m.run}
	checks, stress := "-rapid.checks=1000", "FLOW_STRESS=5s"
	if l.short {
		checks, stress = "-rapid.checks=200", "FLOW_STRESS=1s"
		args = append(args, "-test.short")
	}
	if s.rapid {
		args = append(args, "-rapid.nofailfile", "-rapid.shrinktime=1s", checks)
	}
	ctx, cancel := context.WithTimeout(ctx, limit+10*time.Second) // for what keeps even the timeout from coming
	defer cancel()
	run := exec.CommandContext(ctx, filepath.Join(l.dir, s.binary), args...)
	run.Dir = filepath.Join(l.dir, s.dir)
	run.Env = append(os.Environ(), stress, fmt.Sprint(mutantVariable, "=", n))
	var b bytes.Buffer
	run.Stdout, run.Stderr = &b, &b
	run.WaitDelay = time.Second
	err = run.Run()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended && ctx.Err() == nil {
		return nil, false, err
	}
	return b.Bytes(), err != nil, nil
}

var (
	began  = regexp.MustCompile(`(?m)^=== RUN +(\w+)`)
	failed = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
)

// culprit reads out of the tests' output which test failed, and how.
func culprit(out []byte) (by, how string) {
	if all := began.FindAllSubmatch(out, -1); len(all) > 0 {
		by = string(all[len(all)-1][1]) // what crashes or hangs the tests leaves no other sign than that it had begun
	}
	switch {
	case bytes.Contains(out, []byte("panic: test timed out")):
		return by, "hangs"
	case bytes.Contains(out, []byte("panic: deadlock:")) || bytes.Contains(out, []byte("all goroutines are asleep")):
		how = "deadlock"
	case bytes.Contains(out, []byte("DATA RACE")):
		how = "race"
	case bytes.Contains(out, []byte("\npanic: ")) || bytes.Contains(out, []byte("\nfatal error: ")):
		how = "crash"
	default:
		how = "fails"
	}
	if m := failed.FindSubmatch(out); m != nil {
		return string(m[1]), how
	}
	if bytes.Contains(out, []byte("goleak:")) {
		return "TestMain", "leak"
	}
	if how == "fails" {
		how = "hangs" // it was killed
	}
	return by, how
}
