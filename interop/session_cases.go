package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"example.com/flow"
)

// cutOff: the connection breaks three times in the middle of an upload, and once when all is settled and the answer is
// under way. The client goes on each time, by its session, and each record runs once.
func cutOff(ctx context.Context, t *trial) (err error) {
	const n = 2000
	s := &script{records: records(n), session: "interop-" + strconv.Itoa(n)}
	s.records[n-1].Text = textGate
	svc, err := t.startService(flow.Options{Ordering: keyed, Sessions: &flow.SessionOptions{}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.stop()) }()
	way, err := t.newWay(10_000, 10_000, 30_000)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, way.close()) }()
	s.via = way.cutter.address()
	p, err := t.client.start(ctx, t.rig, t.route, s)
	if err != nil {
		return err
	}
	if err := svc.awaitHeld(ctx, 1); err != nil {
		return errors.Join(err, p.kill(), errors.New(p.output()))
	}
	way.cutter.deafen()
	close(svc.gate)
	if err := await(func() error { return svc.answered(n) }); err != nil {
		return errors.Join(err, p.kill())
	}
	way.cutter.cutAll()
	all, err := p.wait(ctx)
	if err != nil {
		return err
	}
	last := all[len(all)-1]
	if err := (expectation{committed: strconv.Itoa(n)}).differs(last); err != nil {
		return err
	}
	if err := way.close(); err != nil { // its goroutines are this process's
		return err
	}
	ends, err := svc.awaitEnds()
	if err != nil {
		return err
	}
	return resumedEach(way.cutter.cuts(), ends, n, t.route.proxy || t.route.holds)
}

// way is a trial's route with a cutter at the client's end.
type way struct {
	cutter  *cutter
	holding *holding // nil: none
}

// newWay breaks the first connections when the client has sent so many bytes.
func (t *trial) newWay(after ...int) (w *way, err error) {
	w = &way{}
	to := t.rig.address(t.route)
	if t.route.holds {
		if w.holding, err = newHolding(to); err != nil {
			return nil, err
		}
		to = w.holding.address()
	}
	if w.cutter, err = newCutter(to, after...); err != nil && w.holding != nil {
		err = errors.Join(err, w.holding.close())
	}
	return w, err
}

func (w *way) close() error {
	err := w.cutter.close()
	if w.holding != nil {
		err = errors.Join(err, w.holding.close())
	}
	return err
}

// answered returns nil when an Upload has ended well and left nothing unsettled of so many.
func (s *service) answered(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.ends {
		if e.err == nil && e.sum.Committed == n {
			return nil
		}
	}
	return fmt.Errorf("no Upload has settled all; they ended with %v", s.ends)
}

// resumedEach says what is wrong with the Uploads of a session that was cut off so many times. A proxy may end a call at the
// server as if its client had done so, or not have begun it yet.
func resumedEach(cuts int, ends []end, n uint64, proxied bool) error {
	var ran uint64
	broken := 0
	for _, e := range ends {
		ran += e.sum.Succeeded
		if e.err != nil {
			broken++
		}
	}
	switch last := ends[len(ends)-1]; {
	case cuts != 4:
		return fmt.Errorf("%d connections were cut, want 4", cuts)
	case ran != n:
		return fmt.Errorf("%d records ran, want %d, each once", ran, n)
	case last.err != nil || last.sum.Committed != n:
		return fmt.Errorf("the last Upload ended with %+v, %w", last.sum, last.err)
	case !proxied && (len(ends) < 5 || broken < 3):
		return fmt.Errorf("%d Uploads reached the server, of which %d were cut off; want 5 and 3 at least", len(ends), broken)
	}
	return nil
}
