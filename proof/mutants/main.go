// Command mutants asks who watches the watchers: it puts deliberate concurrency bugs, one by one, into a copy of flow's
// source and runs the tests that should catch each. A mutant that they don't catch survives, and the command fails.
//
//	cd proof && go run ./mutants [-run REGEXP] [-j N] [-short]
//
// A hang, a deadlock or a crash of the tests counts as caught. A mutant whose place in the source is not found, or that
// does not build, is an error: it proves nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	pattern := flag.String("run", "", "only the mutants whose name matches this `regexp`")
	jobs := flag.Int("j", max(1, runtime.GOMAXPROCS(0)/2), "how many mutants to try at a time")
	short := flag.Bool("short", false, "fewer random scripts for each mutant")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	survivors, err := hunt(ctx, *pattern, max(1, *jobs), *short)
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	case survivors > 0:
		os.Exit(1)
	}
}

// hunt tries the mutants, prints the table and says how many survived.
func hunt(ctx context.Context, pattern string, jobs int, short bool) (survivors int, err error) {
	which, err := regexp.Compile(pattern)
	if err != nil {
		return 0, err
	}
	root, err := source(ctx)
	if err != nil {
		return 0, err
	}
	var chosen []mutant
	for _, m := range mutants {
		if err := m.fits(root); err != nil { // all of them, also those that are not asked for
			return 0, err
		}
		if which.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) == 0 {
		return 0, fmt.Errorf("no mutant matches %q", pattern)
	}
	tmp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	l, err := newLab(root, filepath.Join(tmp, "flow"), short)
	if err != nil {
		return 0, err
	}
	verdicts, err := l.tryAll(ctx, chosen, jobs)
	if verdicts == nil {
		return 0, err
	}
	return table(chosen, verdicts), err
}

// source is where flow's own source is.
func source(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "example.com/flow").Output()
	if err != nil {
		return "", fmt.Errorf("find flow's source (to be run in its module proof): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tryAll tries each mutant, after it has seen that the source without any passes the same tests.
func (l *lab) tryAll(ctx context.Context, chosen []mutant, jobs int) ([]verdict, error) {
	sound := mutant{name: "the source as it is", sound: true}
	var all []string
	b := newBundle(l.dir)
	var together, alone []int
	for i, m := range chosen {
		all = append(all, m.run)
		sound.race = sound.race || m.race
		err := errNotInFunctions
		if !m.race {
			err = b.add(i+1, m)
		}
		switch {
		case err == nil:
			together = append(together, i)
		case errors.Is(err, errNotInFunctions):
			alone = append(alone, i)
		default:
			return nil, err
		}
	}
	sound.run = strings.Join(all, "|")
	verdicts, failures := make([]verdict, len(chosen)), make([]error, len(chosen))
	tried := func(i int, v verdict, err error) {
		if err != nil { // the others go on
			v.how, failures[i] = "NOT TRIED", err
		}
		verdicts[i] = v
		fmt.Fprintf(os.Stderr, "%-60s %s %s\n", chosen[i].name, v.how, v.by)
	}
	for _, i := range alone { // before the bundle is written
		v, err := l.tryAlone(ctx, chosen[i])
		tried(i, v, err)
	}
	if err := b.write(); err != nil {
		return nil, err
	}
	if out, err := l.build(ctx, sound.race); err != nil {
		return nil, fmt.Errorf("mutants do not build: %w\n%s%s", err, b.explain(out), out)
	}
	v, err := l.test(ctx, sound, 0)
	if err != nil {
		return nil, err
	}
	if v.caught {
		return nil, errors.New("the source as it is fails " + v.by)
	}
	var g errgroup.Group
	g.SetLimit(jobs)
	for _, i := range together {
		g.Go(func() error {
			v, err := l.test(ctx, chosen[i], i+1)
			tried(i, v, err)
			return nil
		})
	}
	_ = g.Wait()
	return verdicts, errors.Join(failures...)
}

// table prints the verdicts and returns how many mutants survived.
func table(chosen []mutant, verdicts []verdict) (survivors int) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| mutant\t| caught by\t| how\t| s\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|")
	for i, m := range chosen {
		v := verdicts[i]
		if !v.caught {
			survivors++
		}
		fmt.Fprintf(w, "| %s\t| %s\t| %s\t| %.1f\t|\n", m.name, v.by, v.how, v.took.Round(100*time.Millisecond).Seconds())
	}
	w.Flush()
	fmt.Printf("\n%d mutants, %d caught, %d survive\n", len(chosen), len(chosen)-survivors, survivors)
	return survivors
}
