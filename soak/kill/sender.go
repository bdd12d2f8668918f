package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"example.com/flow"
	"example.com/flow/flowclient"
)

// senderTask is a sender process: it uploads the generated input of a session, from where the server says.
type senderTask struct {
	Address  string // of its proxy
	Session  string
	Messages uint64
	Keys     int
	Start    time.Time     // message n is due n times Every after it: whoever is late goes as fast as it can
	Every    time.Duration // 0: all is due at once
	Swap     bool          // a fault: two messages of a key change places
}

const (
	maxBuffered      = 2048
	maxBufferedBytes = 200 << 10 // less than so many messages
)

func (t *senderTask) run(out *speaker) error {
	conn, err := grpc.NewClient(t.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second, Backoff: backoff.Config{
			BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond,
		}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second}))
	if err != nil {
		return err
	}
	client := testpb.NewTestServiceClient(conn)
	open := func(ctx context.Context, o ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
		began := time.Now().UnixNano()
		stream, err := client.StreamingInputCall(ctx, o...)
		return &opened{stream, began, out}, err
	}
	s, err := flowclient.New(open, flowclient.Options{
		Session:     t.Session,
		MaxBuffered: maxBuffered, MaxBufferedBytes: maxBufferedBytes,
		MaxStreamAge: time.Second, HeaderTimeout: 2 * time.Second, AnswerTimeout: 5 * time.Second,
		Backoff: 20 * time.Millisecond, MaxBackoff: 500 * time.Millisecond,
	})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	err = t.upload(s, out)
	closed := s.Close(context.Background())
	if closed != nil {
		err = closed
	}
	out.say(statement{Moved: errors.Is(err, flow.ErrSessionMoved), Done: err == nil})
	if errors.Is(err, flow.ErrSessionMoved) {
		err = nil
	}
	return errors.Join(err, conn.Close())
}

// upload sends the input until the Sender ends, and says all the while what is settled.
func (t *senderTask) upload(s *flowclient.Sender[request, reply], out *speaker) error {
	ctx := context.Background()
	next, err := s.Resume(ctx)
	if err != nil {
		return err
	}
	say := func() {
		st := s.Stats() // first: what it has taken on and is not unsettled a moment later is settled
		told := &settled{
			Taken: next - 1 + st.Taken, Buffered: st.Buffered, BufferedBytes: st.BufferedBytes, Streams: st.Streams, Resent: st.Resent,
		}
		for n := range s.Unsettled() {
			if n <= told.Taken {
				told.Unsettled = append(told.Unsettled, n)
			}
		}
		out.say(statement{Settled: told})
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			say()
			select {
			case <-tick.C:
			case <-stop:
				say()
				return
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	first, second := t.swapped()
	for n := next; n <= t.Messages; n++ {
		time.Sleep(time.Until(t.Start.Add(time.Duration(n) * t.Every)))
		number := n
		switch n {
		case first:
			number = second
		case second:
			number = first
		}
		if s.Send(ctx, newRequest(number, t.Keys)) != nil {
			return nil // Close says why
		}
	}
	return s.Flush(ctx)
}

// swapped returns two numbers of one key that the fault has change places: 0, 0 without it.
func (t *senderTask) swapped() (first, second uint64) {
	if !t.Swap {
		return 0, 0
	}
	first = t.Messages / 2
	for second = first + 1; keyOf(second, t.Keys) != keyOf(first, t.Keys); second++ {
	}
	return first, second
}

// opened is a stream that says when it gets its response header.
type opened struct {
	grpc.ClientStreamingClient[request, reply]
	began int64
	out   *speaker
}

// Header implements grpc.ClientStream.
func (s *opened) Header() (metadata.MD, error) {
	md, err := s.ClientStreamingClient.Header()
	if len(md.Get("flow-epoch")) > 0 {
		s.out.say(statement{Opened: s.began})
	}
	return md, err
}

// check holds what a sender was told against its bounds.
func (s *settled) check() error {
	switch {
	case s.Buffered > maxBuffered:
		return fmt.Errorf("a sender keeps %d messages, at most %d may be", s.Buffered, maxBuffered)
	case s.BufferedBytes > maxBufferedBytes:
		return fmt.Errorf("a sender keeps %d bytes, at most %d may be", s.BufferedBytes, maxBufferedBytes)
	case !slices.IsSorted(s.Unsettled):
		return fmt.Errorf("a sender has %v unsettled, which does not ascend", s.Unsettled)
	}
	return nil
}
