package flow

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

// stateSteps are what may happen to a run, by name; each reports whether it has changed anything.
var stateSteps = []struct {
	name string
	do   func(*runState) bool
}{
	{"end of the source", func(s *runState) bool {
		before := s.phase()
		s.inputEnded()
		return s.phase() != before
	}},
	{"shutdown with drain", func(s *runState) bool { return s.stop(true) }},
	{"shutdown without drain", func(s *runState) bool { return s.stop(false) }},
	{"failure", func(s *runState) bool { return s.fail(&Failure{Kind: FailureHandlerError}) }},
	{"all finished", func(s *runState) bool { return s.finishedAll() }},
}

// inPhase returns a run in the phase, as it comes there.
func inPhase(p phase) *runState {
	s := new(runState)
	switch p {
	case phaseOpen:
	case phaseFinishing:
		s.inputEnded()
	case phaseDraining:
		s.stop(true)
	case phaseAborting:
		s.fail(&Failure{Kind: FailureInternal})
	case phaseDone:
		s.inputEnded()
		s.finishedAll()
	}
	return s
}

func TestRunStateMovesForwardOnly(t *testing.T) {
	to := map[phase][]phase{ // by the steps in their order
		phaseOpen:      {phaseFinishing, phaseDraining, phaseAborting, phaseAborting, phaseOpen},
		phaseFinishing: {phaseFinishing, phaseDraining, phaseAborting, phaseAborting, phaseDone},
		phaseDraining:  {phaseDraining, phaseDraining, phaseAborting, phaseAborting, phaseDone},
		phaseAborting:  {phaseAborting, phaseAborting, phaseAborting, phaseAborting, phaseDone},
		phaseDone:      {phaseDone, phaseDone, phaseDone, phaseDone, phaseDone},
	}
	if len(to) != int(phaseDone)+1 {
		t.Fatalf("%d phases in the table", len(to))
	}
	for from := phaseOpen; from <= phaseDone; from++ {
		for i, step := range stateSteps {
			t.Run(fmt.Sprintf("%v, then %s", from, step.name), func(t *testing.T) {
				s, want := inPhase(from), to[from][i]
				if got := s.phase(); got != from {
					t.Fatalf("it begins in %v", got)
				}
				changed := step.do(s)
				if s.phase() != want {
					t.Errorf("the phase is %v, want %v", s.phase(), want)
				}
				if s.at != s.phase() {
					t.Errorf("the mirror says %v of %v", s.phase(), s.at)
				}
				if changed != (want != from) {
					t.Errorf("it reports a change: %v", changed)
				}
			})
		}
	}
}

func TestRunStateKeepsTheFirstFailure(t *testing.T) {
	s := new(runState)
	first, second := &Failure{Kind: FailureHandlerError}, &Failure{Kind: FailureInternal}
	if !s.fail(first) || s.fail(second) {
		t.Error("the second failure counts")
	}
	s.finishedAll()
	if s.fail(second) {
		t.Error("a failure after the end counts")
	}
	if f, _ := s.reason(); f != first {
		t.Errorf("the reason is %v", f)
	}
}

func TestRunStateHasOneFirstFailureOfMany(t *testing.T) {
	s := new(runState)
	var all sync.WaitGroup
	firsts := make(chan *Failure, 16)
	for range cap(firsts) {
		all.Go(func() {
			if f := (&Failure{Kind: FailureHandlerError}); s.fail(f) {
				firsts <- f
			}
		})
	}
	all.Wait()
	if f, _ := s.reason(); len(firsts) != 1 || f != <-firsts {
		t.Errorf("%d failures were the first", len(firsts))
	}
}

func TestRunStateAFailureAfterAShutdownWithoutDrainIsTheReason(t *testing.T) {
	s := new(runState)
	s.stop(false)
	f := &Failure{Kind: FailureHandlerError}
	if !s.fail(f) {
		t.Error("it does not count")
	}
	if got, stopping := s.reason(); got != f || !stopping {
		t.Errorf("reason() = %v, %v", got, stopping)
	}
}

func TestRunStateResult(t *testing.T) {
	failure := &Failure{Kind: FailureHandlerError, Err: errors.New("broken")}
	cancelled := &Failure{Kind: FailureContextCancelled}
	for name, c := range map[string]struct {
		steps        func(*runState)
		settled      bool
		contextEnded *Failure
		want         FailureKind // FailureNone: it ended well
	}{
		"end of the source":                            {(*runState).inputEnded, true, nil, FailureNone},
		"a failure before the end of the source":       {func(s *runState) { s.fail(failure); s.inputEnded() }, true, nil, FailureHandlerError},
		"a failure after it":                           {func(s *runState) { s.inputEnded(); s.fail(failure) }, true, nil, FailureHandlerError},
		"a failure and the end of the context":         {func(s *runState) { s.fail(failure) }, false, cancelled, FailureHandlerError},
		"drain":                                        {func(s *runState) { s.stop(true) }, true, nil, FailureShutdown},
		"drain with the end of the source in it":       {func(s *runState) { s.stop(true); s.inputEnded() }, true, nil, FailureNone},
		"drain after the end of the source":            {func(s *runState) { s.inputEnded(); s.stop(true) }, true, nil, FailureNone},
		"drain with something unsettled":               {func(s *runState) { s.inputEnded(); s.stop(true) }, false, nil, FailureShutdown},
		"shutdown that dropped something":              {func(s *runState) { s.inputEnded(); s.stop(false) }, false, nil, FailureShutdown},
		"shutdown that found everything done":          {func(s *runState) { s.inputEnded(); s.stop(false) }, true, nil, FailureNone},
		"end of the context as the last message fails": {(*runState).inputEnded, false, cancelled, FailureContextCancelled},
		"end of the context after the last message":    {(*runState).inputEnded, true, cancelled, FailureNone},
	} {
		t.Run(name, func(t *testing.T) {
			s := new(runState)
			c.steps(s)
			s.finishedAll()
			got := FailureNone
			if f := s.result(c.settled, func() *Failure { return c.contextEnded }); f != nil {
				got = f.Kind
			}
			if got != c.want {
				t.Errorf("the result is %v, want %v", got, c.want)
			}
		})
	}
}

func TestRunStateNamesItsPhases(t *testing.T) {
	seen := map[string]bool{}
	for p := phaseOpen; p <= phaseDone; p++ {
		seen[p.String()] = true
	}
	if len(seen) != 5 || !seen["draining"] || phase(9).String() == "" {
		t.Errorf("the names are %v, and %v", seen, phase(9))
	}
}
