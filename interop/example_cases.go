package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
)

// fullUploadStored: the same against the example server, with a look into its database.
func fullUploadStored(ctx context.Context, t *trial) error {
	const n = 1000
	return t.atExample(func(e *example) error {
		if err := e.start(ctx); err != nil {
			return err
		}
		s := &script{records: records(n)}
		p, err := t.client.start(ctx, t.rig, t.exampleRoute(), s)
		if err != nil {
			return err
		}
		all, err := p.wait(ctx)
		if err != nil {
			return err
		}
		saw := all[0]
		err = expectation{committed: strconv.Itoa(n)}.differs(saw)
		if !saw.blind && saw.Stored != n {
			err = errors.Join(err, fmt.Errorf("the Receipt says %d, want %d", saw.Stored, n))
		}
		return errors.Join(err, e.check(ctx, s.records))
	})
}

// restart: the example server is shut down in the middle of an upload, and another one takes its place. The client sends
// it the rest, and every record is stored once.
func restart(ctx context.Context, t *trial) error {
	const n = 400
	return t.atExample(func(e *example) error {
		if err := e.start(ctx); err != nil {
			return err
		}
		s := &script{records: records(n), every: 2 * time.Millisecond, resume: true}
		p, err := t.client.start(ctx, t.rig, t.exampleRoute(), s)
		if err != nil {
			return err
		}
		if err := e.again(ctx, n/4); err != nil {
			return errors.Join(err, p.kill())
		}
		all, err := p.wait(ctx)
		if err != nil {
			return err
		}
		if t.client.once {
			if all, err = t.resume(ctx, all, s); err != nil {
				return err
			}
		}
		return errors.Join(resumed(all, n), e.check(ctx, s.records))
	})
}

// resumed says what is wrong with the calls of an upload of n records that a shutdown interrupted. The first was cut in
// the middle, the last stored the rest; between them there may be calls that the server refused on its way out.
func resumed(all []outcome, n int) error {
	if len(all) < 2 {
		return fmt.Errorf("the client made one call only: %+v", all)
	}
	var errs []error
	for i, saw := range all[:len(all)-1] {
		committed, err := strconv.Atoi(saw.Trailers["flow-committed"])
		if i == 0 && (err != nil || committed < n/4 || committed >= n) || i > 0 && committed != 0 {
			return fmt.Errorf("call %d committed %q, want some from %d to %d, and then none", i+1,
				saw.Trailers["flow-committed"], n/4, n-1)
		}
		errs = append(errs, expectation{code: codes.Unavailable, message: "the flow is shutting down", reason: "SHUTDOWN",
			retry: true, committed: strconv.Itoa(committed)}.differs(saw))
		n -= committed
	}
	return errors.Join(append(errs, expectation{committed: strconv.Itoa(n)}.differs(all[len(all)-1]))...)
}

// resume does what a user does who has a client that can't: it calls again, with the rest.
func (t *trial) resume(ctx context.Context, first []outcome, s *script) ([]outcome, error) {
	committed, err := strconv.Atoi(first[0].Trailers["flow-committed"])
	if err != nil {
		return nil, err
	}
	p, err := t.client.start(ctx, t.rig, t.exampleRoute(), &script{records: s.records[committed:]})
	if err != nil {
		return nil, err
	}
	second, err := p.wait(ctx)
	return append(first, second...), err
}

// again stops the server once so many records are stored, and starts another.
func (e *example) again(ctx context.Context, after uint64) error {
	for {
		n, err := e.stored(ctx, "interop")
		if err != nil {
			return err
		}
		if n >= after {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := e.stop(); err != nil {
		return err
	}
	return e.start(ctx)
}

// exampleRoute is the trial's route, to the example server.
func (t *trial) exampleRoute() route {
	to := t.route
	to.example = true
	return to
}

// atExample runs do with an example server, and stops that one well: with exit code 0.
func (t *trial) atExample(do func(*example) error) error {
	dir, err := os.MkdirTemp(t.rig.dir, "example")
	if err != nil {
		return err
	}
	e, err := newExample(t.rig, t.route, t.shop.example, filepath.Join(dir, "example.db"))
	if err != nil {
		return err
	}
	err = do(e)
	return errors.Join(err, e.close())
}
