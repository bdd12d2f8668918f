package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

// trial is one case with one client on one route.
type trial struct {
	rig    *rig
	shop   *workshop
	client *client
	route  route
}

// limit is how long a trial may take: what takes longer hangs.
const limit = 40 * time.Second

// startService starts the service at the end of the trial's route.
func (t *trial) startService(o flow.Options) (*service, error) {
	return startService(t.rig.service, t.rig.serverCredentials(t.route), t.rig.goroutines, o)
}

// call has the client make the call of s at a service with these options. Once `held` handlers stand still, act
// happens, if there is one. It returns what the client saw (nothing if act ended it) and how the Upload ended, after
// which nothing runs on the server.
func (t *trial) call(ctx context.Context, o flow.Options, s *script, held int, act func(*process) error) (*outcome, end, error) {
	svc, err := t.startService(o)
	if err != nil {
		return nil, end{}, err
	}
	saw, e, err := t.callAt(ctx, svc, s, held, act)
	return saw, e, errors.Join(err, svc.stop())
}

func (t *trial) callAt(ctx context.Context, svc *service, s *script, held int, act func(*process) error) (*outcome, end, error) {
	p, err := t.client.start(ctx, t.rig, t.route, s)
	if err != nil {
		return nil, end{}, err
	}
	killed := false
	if act != nil {
		if err := svc.awaitHeld(ctx, held); err != nil {
			return nil, end{}, errors.Join(err, p.kill(), errors.New(p.output()))
		}
		if err := act(p); err != nil {
			return nil, end{}, err
		}
		select {
		case <-p.exited:
			killed = !p.cmd.ProcessState.Exited()
		default:
		}
	}
	var saw *outcome
	if !killed {
		all, err := p.wait(ctx)
		if err != nil {
			return nil, end{}, err
		}
		if len(all) != 1 {
			return nil, end{}, fmt.Errorf("the client made %d calls, want 1", len(all))
		}
		saw = &all[0]
	}
	e, err := svc.awaitEnd()
	if err != nil {
		return nil, end{}, fmt.Errorf("the server: %w", err)
	}
	return saw, e, nil
}

// ended says whether an Upload ended with this kind and code.
func (e end) ended(kind flow.FailureKind, code codes.Code) error {
	if flow.ClassifyFailure(e.err) != kind || status.Code(e.err) != code {
		return fmt.Errorf("the server's Upload ended with %w (%v), want %v (%v)", e.err, status.Code(e.err), kind, code)
	}
	return nil
}
