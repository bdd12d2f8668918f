package flowclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// stream is one stream of a session: it is opened, its header is awaited, it carries what is buffered, is half-closed,
// and answered. All this is done by the Sender's goroutine, but for receiving, which has one of its own.
type stream[Req, Resp any] struct {
	sender *Sender[Req, Resp]
	request
	claim bool // without an epoch
	blank bool // without messages, to ask how far the server is

	noHeader bool // does not wait for the header

	ctx    context.Context
	cancel context.CancelCauseFunc
	client grpc.ClientStreamingClient[Req, Resp]
	header chan metadata.MD // nil when it has been read
	done   chan reception[Resp]
	batch  []*Req
	watch  watchdog

	headerCame bool // a header with metadata, and not only the end of the stream
	epochTold  bool // by it, or by the trailers
	unheard    bool // it was answered, and no header had said before that there are sessions
	doubtful   bool // it has carried messages to a server of which nothing says yet that it has sessions
	halfClosed bool
	overdue    atomic.Bool // it has reached MaxStreamAge

	cursor       uint64 // the next number to send
	carried      uint64 // messages sent
	carriedBytes int64
	sentBefore   uint64 // Sender.sent when the stream began
}

// reception is what the stream was answered with.
type reception[Resp any] struct {
	reply   *Resp
	trailer metadata.MD
	err     error
}

// ending is how a stream ended.
type ending[Resp any] struct {
	reception[Resp]
	fatal  error // ends the Sender, whatever the status is
	own    error // why the Sender cancelled it
	unsent bool  // err is why a message could not be encoded

	backedOff bool // the backoff is over already
}

const batchSize = 32

func newStream[Req, Resp any](s *Sender[Req, Resp], r request) *stream[Req, Resp] {
	st := &stream[Req, Resp]{
		sender: s, request: r, claim: r.epoch == 0, cursor: r.start,
		header: make(chan metadata.MD, 1), done: make(chan reception[Resp], 1), batch: make([]*Req, 0, batchSize),
	}
	st.ctx, st.cancel = context.WithCancelCause(s.ctx)
	st.watch.cancel = st.cancel
	return st
}

// run is the life of the stream.
func (st *stream[Req, Resp]) run() ending[Resp] {
	defer st.cancel(nil)
	defer st.watch.stop()
	st.watch.set(st.sender.options.HeaderTimeout, errHeaderTimeout)
	began := time.Now()
	ctx := metadata.AppendToOutgoingContext(st.ctx, st.pairs()...)
	err := guarded("open", func() (err error) { st.client, err = st.sender.openStream(ctx); return err })
	if err != nil {
		return st.ended(reception[Resp]{err: err})
	}
	if st.client == nil {
		return ending[Resp]{fatal: errors.New("flowclient: open returned neither a stream nor an error")}
	}
	go st.receive()

	switch {
	case st.noHeader:
		st.watch.stop()
	case !st.blank:
		if e, over := st.awaitHeader(began); over {
			return e
		}
	}
	if err := st.send(); err != nil {
		return st.abort(err)
	}
	return st.await()
}

// awaitHeader waits until the header says that there is something to send. over reports that there won't be, on this
// stream, and e is how it ended.
//
// A server without sessions sends no header before it has read a message, and a proxy may hold the header back until the
// answer. So a stream whose header is late is half-closed: its answer tells the two from a server that is gone, for which
// it is waited as long as the backoff takes in any case. So is one whose header says nothing of sessions: it may be that of an
// interceptor in a server that refuses the stream, or sends its own header too early for flow's.
func (st *stream[Req, Resp]) awaitHeader(began time.Time) (e ending[Resp], over bool) {
	st.watch.stop()
	limit, backsOff := st.sender.options.HeaderTimeout, false // for the answer of a stream that is half-closed
	late := time.NewTimer(st.sender.options.HeaderTimeout - time.Since(began))
	defer late.Stop()
	select {
	case md := <-st.header:
		if err := st.hear(md); err != nil {
			return st.abort(err), true
		}
		if st.epochTold {
			return e, false
		}
		if !st.headerCame {
			return st.await(), true // it has failed
		}
	case r := <-st.done:
		return st.ended(r), true
	case <-late.C:
		limit, backsOff = st.sender.pacing.backoff.next(), true
	}
	if err := st.halfClose(); err != nil {
		return st.abort(err), true
	}
	st.watch.set(limit, errHeaderTimeout)
	e = st.await()
	e.backedOff = backsOff && e.own == errHeaderTimeout
	st.unheard = e.own == nil && e.fatal == nil
	return e, true
}

// halfClose tells the server that nothing more comes.
func (st *stream[Req, Resp]) halfClose() error {
	st.halfClosed = true
	return guarded("the stream", func() error { _ = st.client.CloseSend(); return nil }) // the answer says what is wrong
}

// receive reads the header and the answer. It ends with the stream, which the context can end.
func (st *stream[Req, Resp]) receive() {
	r := reception[Resp]{err: errors.New("flowclient: runtime.Goexit while receiving")}
	defer func() { st.done <- r }()
	header := st.header
	err := guarded("the stream", func() error {
		md, _ := st.client.Header() // why there is none is what RecvMsg says
		header <- md
		reply := new(Resp)
		if err := st.client.RecvMsg(reply); err != nil {
			return err
		}
		r.reply = reply
		return nil
	})
	r.err = err
	_ = guarded("the stream", func() error { r.trailer = st.client.Trailer(); return nil })
}

// send sends what is buffered until it is time for the half-close, and half-closes. An error is why the stream can't go
// on; its end by the server is none.
func (st *stream[Req, Resp]) send() error {
	s := st.sender
	var age *time.Timer
	defer func() {
		if age != nil {
			age.Stop()
		}
	}()
	sent := 0
	for {
		move := s.nextMove(st, sent)
		sent = 0
		if move == moveHalfClose {
			break
		}
		if move == moveStop {
			return nil
		}
		if age == nil {
			age = time.AfterFunc(s.options.MaxStreamAge, func() {
				st.overdue.Store(true)
				s.notify()
			})
			st.watch.set(s.options.MaxStreamAge+min(s.answerTimeout(), math.MaxInt64-s.options.MaxStreamAge), errAnswerTimeout)
		}
		if move == moveSend {
			var ended bool
			var err error
			if sent, ended, err = st.sendBatch(); err != nil || ended {
				s.noteSent(st, sent)
				return err
			}
			select {
			case md := <-st.header:
				s.noteSent(st, sent) // first: what a header says depends on whether anything was sent before
				sent = 0
				if err := st.hear(md); err != nil {
					return err
				}
			default:
			}
			continue
		}
		select {
		case <-s.wake:
		case md := <-st.header:
			if err := st.hear(md); err != nil {
				return err
			}
		case r := <-st.done:
			st.done <- r
			return nil
		}
	}
	if err := st.halfClose(); err != nil {
		return err
	}
	if st.header == nil || st.noHeader {
		st.watch.set(s.answerTimeout(), errAnswerTimeout)
	}
	return nil
}

// sendBatch sends st.batch, or as much of it as is sent before the stream is overdue. ended reports that the server has
// ended the stream.
func (st *stream[Req, Resp]) sendBatch() (sent int, ended bool, err error) {
	defer clear(st.batch)
	err = guarded("the stream", func() error {
		for _, m := range st.batch {
			if st.overdue.Load() {
				return nil
			}
			if err := st.client.Send(m); err != nil {
				return err
			}
			sent++
		}
		return nil
	})
	switch err {
	case nil:
		return sent, false, nil
	case io.EOF:
		return sent, true, nil
	}
	return sent, false, &sendError{err}
}

// sendError is what Send of the stream returned, other than that the server has ended it.
type sendError struct{ err error }

func (e *sendError) Error() string { return "flowclient: a message could not be sent" }

// hear reads the response header. An error is why the stream can't go on.
func (st *stream[Req, Resp]) hear(md metadata.MD) error {
	st.header = nil
	if len(md) == 0 {
		return nil
	}
	st.headerCame = true
	a, err := readAnswer(md)
	if err != nil {
		return err
	}
	if a.epoch == 0 { // the answer says more
		st.doubtful = st.carried > 0 && st.epoch == 0
		return nil
	}
	st.epochTold = true
	return st.sender.believe(st, a)
}

// await waits for the answer.
func (st *stream[Req, Resp]) await() ending[Resp] {
	for {
		select {
		case md := <-st.header:
			if err := st.hear(md); err != nil {
				return st.abort(err)
			}
			if st.halfClosed && st.headerCame {
				st.watch.set(st.sender.answerTimeout(), errAnswerTimeout)
			}
		case r := <-st.done:
			return st.ended(r)
		}
	}
}

// abort cancels the stream, waits until it is over, and returns how it ended because of err.
func (st *stream[Req, Resp]) abort(err error) ending[Resp] {
	st.cancel(err)
	r := <-st.done
	if send, ok := err.(*sendError); ok {
		e := st.ended(reception[Resp]{err: send.err, trailer: r.trailer})
		code := status.Code(e.err)
		e.unsent = code == codes.Internal || code == codes.ResourceExhausted
		return e
	}
	if err == errSettledAhead {
		return ending[Resp]{reception: r, own: err}
	}
	return ending[Resp]{reception: r, fatal: err}
}

// ended returns how the stream ended, if r is its answer.
func (st *stream[Req, Resp]) ended(r reception[Resp]) ending[Resp] {
	if panicked, ok := r.err.(*panicError); ok {
		return ending[Resp]{fatal: panicked}
	}
	// From here on it is a status and nothing else: an error of the caller's may panic whenever it is asked something.
	if err := guarded("the stream's error", func() error { r.err = statusOf(r.err).Err(); return nil }); err != nil {
		return ending[Resp]{fatal: err}
	}
	select {
	case md := <-st.header: // it came with the answer
		if err := st.hear(md); err != nil && err != errSettledAhead {
			return ending[Resp]{fatal: err}
		}
	default:
	}
	e := ending[Resp]{reception: r}
	if r.err != nil && st.ctx.Err() != nil && statusOf(r.err).Code() == codes.Canceled {
		switch cause := context.Cause(st.ctx); cause {
		case errHeaderTimeout, errAnswerTimeout, errNotWanted:
			e.own = cause
		}
	}
	return e
}

// statusOf returns the status of an error of a stream, or of one that open returned instead.
func statusOf(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}

// watchdog cancels a stream at a time that is set and moved.
type watchdog struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// set has the stream cancelled with cause after d, and not when it was set before.
func (w *watchdog) set(d time.Duration, cause error) {
	w.stop()
	w.timer = time.AfterFunc(d, func() { w.cancel(cause) })
}

func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// String is for logs: which numbers the stream has carried.
func (st *stream[Req, Resp]) String() string {
	return fmt.Sprintf("%d..%d", st.start, st.cursor-1)
}
