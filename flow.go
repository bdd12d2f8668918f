package flow

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Message is one message of a stream, as its handler sees it.
type Message[T any] struct {
	// Seq is 1 for the first message of the stream, then +1 each, in order of receipt.
	Seq uint64
	// Key is what the OrderingKeyFunc said; "" without one.
	Key string
	// Value is what recv returned. It is never reused by flow: a handler may keep it.
	Value T
	// Attempt is 1 on the first try.
	Attempt int
	// Pressured says that the message was admitted although capacity was exhausted
	// (BackpressureSoftAllowWithSignal only).
	Pressured bool

	origin *origin // what all messages of its stream have in common; nil in a literal
}

// origin is what all messages of a stream have in common: a Message has it by one word.
type origin struct {
	ctx     context.Context
	session Session
}

// Context is that of the message's stream, with its values and its deadline: it ends when the stream does. A [Handler] has
// it anyway; a [BatchHandler] is given one that belongs to the call. Of a message that is not of a stream, as a literal, it
// is context.Background.
func (m Message[T]) Context() context.Context {
	if m.origin == nil {
		return context.Background()
	}
	return m.origin.ctx
}

// Session is the session that the message is of: see [SessionOptions]. It is zero without one.
func (m Message[T]) Session() Session {
	if m.origin == nil {
		return Session{}
	}
	return m.origin.session
}

// Handler does what there is to do with one message. It is called from goroutines of the stream's Run, concurrently
// as far as the ordering and the capacity allow. The goroutines are shared between messages. ctx carries Run's values and
// deadline, and is cancelled with the reason as its cause when the stream ends early: a handler that heeds it lets Run
// return. It lives as long as the stream (with AttemptTimeout, the attempt), not as long as the call: what is registered
// with it by context.AfterFunc is not released when the handler returns. The error is classified by [ClassifyFailure],
// and its text, status and details go to the client, if it is what ends the stream; a panic or runtime.Goexit becomes
// a [FailureInternal], whose text is constant.
//
// A handler must not call Shutdown, or Run, of its own Flow: both wait for it.
type Handler[T any] func(ctx context.Context, m Message[T]) error

// OrderingKeyFunc names the key of a message: what must stay in order among themselves. It is called once for each
// message, in order of receipt, on the goroutine that receives; it should be fast and must not change the message.
//
// The key must stay as it is until the last message that has it is finished. One that is an unsafe string over a buffer
// that is used again changes under way, and breaks the order in silence. The same holds of the message: it is read
// ahead, so it needs a codec that copies, as gRPC's does.
type OrderingKeyFunc[T any] func(T) string

// Options configure a Flow. The zero value is a strict and safe loop: one message of a stream at a time, in order,
// at most 1024 read ahead, no retry, and the first failure ends its stream.
type Options struct {
	// Ordering controls which messages of a stream may run concurrently.
	Ordering OrderingOptions
	// Backpressure controls admission under load.
	Backpressure BackpressureOptions
	// Retry controls the further tries of a message that failed.
	Retry RetryOptions
	// Shutdown controls graceful termination.
	Shutdown ShutdownOptions

	// MaxPending bounds the messages of one stream that are received and not finished. At the bound the stream is not
	// read: HTTP/2 flow control slows its client and nothing is lost. (Not behind grpc.Server.ServeHTTP, whose transport
	// reads the request's body whether or not anybody receives.) 0 means 1024, negative means unbounded.
	MaxPending int
	// MaxPendingBytes bounds the bytes of all messages of the Flow that are received and not finished, measured by
	// proto.Size, by a method Size() int, or as the length of a string or []byte; New refuses it for other types.
	// It is checked before each read. At the bound, a stream is read only while it has less pending than its share, the
	// bound divided by the number of streams: one that stands still may fill the bound, and the others go on all the
	// same. The bytes pending are at most twice the bound, plus one message a stream: for when streams that stand still
	// hold twice the bound, only streams with nothing pending are read. 0 means 64 MiB, or unbounded for messages without
	// a size; negative means unbounded.
	MaxPendingBytes int64
	// IdleTimeout ends a stream from which nothing came for so long, counted from its last receipt or the finish of
	// its last message, whichever is later, while a read is blocked and nothing is pending. A message counts when it has
	// arrived whole: a large one that takes longer than that to arrive ends its stream. The stream ends with
	// FailureContextCancelled and the code DeadlineExceeded. 0 means never.
	IdleTimeout time.Duration

	// Batch is for [NewBatch]; New refuses it.
	Batch BatchOptions

	// OnFailure decides what a message that could not be done means for its stream; nil means FailStream. It is called
	// once for each message that failed for good or was refused, while its stream lives: in the message's turn, before
	// the next of its key starts; for a message refused on receipt, at once and on the receiving side. Different keys
	// call it concurrently. FailureContextCancelled and FailureShutdown never come to it. It must not call Shutdown of its
	// own Flow, which waits for it.
	OnFailure func(ctx context.Context, f *Failure) FailureAction
	// Observer sees what happens. nil costs nothing, not even a clock reading.
	Observer Observer

	// Sessions have streams go on where others of the same client ended: see SessionOptions. nil means none: what a client
	// asks for is ignored. They need a MaxPending, which bounds what is to be remembered of them.
	Sessions *SessionOptions
}

// FailureAction is what Options.OnFailure decides.
type FailureAction int

const (
	// FailStream ends the stream with this failure. It is the default: nothing is dropped silently.
	FailStream FailureAction = iota
	// SkipMessage settles the message and goes on.
	SkipMessage
	// SkipKey settles the message and goes on, but runs no later message of this key in this stream, or in this session,
	// also with ScopeFlow. Each of them fails with FailureOrdering, counts as Rejected and comes to OnFailure in its turn.
	// Where there is no order ([OrderingNone], or "" with UnorderedEmptyKey) it is SkipMessage.
	SkipKey
)

// String returns the constant's name.
func (a FailureAction) String() string {
	return enumName(int(a), "FailureAction", "FailStream", "SkipMessage", "SkipKey")
}

// Flow brings the messages of client-streaming calls to a handler. It is safe for concurrent use; it holds no goroutine
// and nothing to close while no stream runs. A Flow that is used in a testing/synctest bubble belongs to that bubble.
type Flow[T any] struct {
	receiver *Receiver[T]
	shutdown *ShutdownCoordinator
	key      OrderingKeyFunc[T]
}

// New assembles a [Receiver], a [Gate] and an [Engine], and copies opts. key may be nil unless the mode is
// OrderingKeyedFIFO: then every message's key is "". An impossible configuration is an error that names the field and
// the value, never a panic and never a silent default.
func New[T any](handler Handler[T], key OrderingKeyFunc[T], opts Options) (*Flow[T], error) {
	switch {
	case handler == nil:
		return nil, errNilHandler
	case opts.Batch != BatchOptions{}:
		return nil, invalid("Batch", fmt.Sprintf("%+v", opts.Batch), "is for NewBatch")
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	return newFlow(newEngine(handler, opts.Retry), key, opts)
}

// newFlow is New for an engine and for options that are valid in themselves.
func newFlow[T any](engine *Engine[T], key OrderingKeyFunc[T], opts Options) (*Flow[T], error) {
	if key == nil && opts.Ordering.Mode == OrderingKeyedFIFO {
		return nil, errNilKey
	}
	sizeOf := sizeFunc[T]()
	if sizeOf == nil && opts.MaxPendingBytes > 0 {
		return nil, invalid("MaxPendingBytes", opts.MaxPendingBytes, sizelessRule[T]())
	}
	var ordering OrderingResolver
	if own := opts.Ordering.Resolver; own != nil {
		local := opts.Ordering
		local.Resolver = nil
		ordering = &resolverOption{OrderingResolver: own, local: newLaneResolver(local)}
	} else if opts.Ordering.Mode != OrderingNone {
		ordering = newLaneResolver(opts.Ordering)
	}
	coordinator := NewShutdownCoordinator(opts.Shutdown)
	r := NewReceiver(
		NewGate(ordering, NewPressureController(opts.Backpressure), coordinator),
		engine)
	switch {
	case opts.MaxPending < 0:
		r.maxPending = math.MaxInt64
	case opts.MaxPending > 0:
		r.maxPending = int64(opts.MaxPending)
	}
	if opts.MaxPendingBytes != 0 {
		r.boundBytes(opts.MaxPendingBytes, sizeOf)
	}
	r.idle, r.onFailure, r.observer = opts.IdleTimeout, opts.OnFailure, opts.Observer
	if opts.Sessions != nil {
		r.sessions = newSessions(*opts.Sessions)
	}
	coordinator.began = r.tellShutdown
	return &Flow[T]{receiver: r, shutdown: coordinator, key: key}, nil
}

func (o *Options) validate() error {
	for _, part := range []interface{ validate() error }{o.Ordering, o.Backpressure, o.Retry, o.Shutdown} {
		if err := part.validate(); err != nil {
			return err
		}
	}
	switch {
	case o.IdleTimeout < 0:
		return invalid("IdleTimeout", o.IdleTimeout, "must not be negative")
	case o.Sessions != nil && o.MaxPending < 0:
		return invalid("MaxPending", o.MaxPending, "must not be negative with Sessions: it bounds what is remembered of them")
	case o.Sessions != nil:
		return o.Sessions.validate()
	}
	return nil
}

// Run is one stream: it reads recv until io.EOF, runs every message, and returns when all have finished, or, when the
// stream ends early, as soon as its running handlers have returned. Many streams may Run at once; they share the Flow's
// capacity. stream.Recv of a generated grpc.ClientStreamingServer fits recv as it is, with stream.Context() as ctx.
//
// The error is nil or a *Failure, which is a gRPC status already; the Summary is complete in both cases. No messages at
// all: nil and a zero Summary.
//
// recv is called from one other goroutine, never again after its first error, and not while MaxPending messages are
// pending. One Run per gRPC stream, and a recv belongs to one Run: after a failure it may still be blocked, and what it
// then returns is lost. (gRPC's ends when the service method returns.) A message that is dropped, because its stream
// ended before it could run, comes to no function of the caller's: what recv acquires for a message must be released by
// other means. Seq counts what recv has returned: if the method receives a message by itself first, the numbers that the
// client is told are one too low for it.
//
// Under gRPC, Run sends the response header before the first message executes, so that a client's automatic retry can't
// replay messages that have had effects: set your own headers before, and call grpc.SetSendCompressor before, if at all.
// When it ends, it sets trailers that say how far it got: see [ProgressFromTrailer].
func (f *Flow[T]) Run(ctx context.Context, recv func() (T, error)) (Summary, error) {
	return f.receiver.Receive(ctx, recv, f.key)
}

// Start begins a stream and does not wait for it: it is [Flow.Run] on a goroutine of its own, where the Observer and
// SessionOptions.Owner are called too. When Start returns, a Shutdown knows of the stream. The stream under way says how far
// it is, at any time and cheaply, which a store that keeps progress elsewhere needs. Wait must not be forgotten under
// gRPC: recv belongs to the service method, and ends with it.
func (f *Flow[T]) Start(ctx context.Context, recv func() (T, error)) *Stream {
	st := &started[T]{s: f.receiver.newStream(ctx, f.key), over: make(chan struct{})}
	entered := st.s.enter()
	go func() {
		defer close(st.over)
		if st.s.begin(); entered {
			st.s.run(recv)
		}
		st.sum, st.err = st.s.end(entered)
	}()
	return &Stream{run: st}
}

// StreamServerInterceptor serves all client-streaming RPCs whose request message is T, as [Interceptor] says.
func (f *Flow[T]) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return NewInterceptor(f.receiver, f.key).StreamServerInterceptor()
}

// Shutdown ends the Flow gracefully and for good, like http.Server.Shutdown: new streams are refused with
// FailureShutdown, streams under way are read no further, and what Options.Shutdown lets run is waited for. See
// [ShutdownCoordinator.Shutdown]. Call it before grpc's GracefulStop, which tells no handler and waits for ever.
func (f *Flow[T]) Shutdown(ctx context.Context) error { return f.shutdown.Shutdown(ctx) }

// Close ends the Flow at once and for good, like http.Server.Close: all streams end with FailureShutdown and running
// handlers are cancelled. It does not wait, and returns nil.
func (f *Flow[T]) Close() error { return f.shutdown.Close() }

// Stats is a live snapshot. Its cost grows with the messages pending; nothing is kept up to date for it.
func (f *Flow[T]) Stats() Stats { return f.receiver.snapshot(0).Stats }

// Summary counts what became of the messages of a stream (or, in [Stats], of all streams).
// Received = Succeeded + Failed + Rejected + Dropped + Duplicates, always. With a session the counts are the stream's;
// Committed, Unsettled and Last are the session's.
type Summary struct {
	Received  uint64   // messages that recv returned and that the stream took on
	Succeeded uint64   // the handler returned nil
	Failed    uint64   // the handler failed for good
	Rejected  uint64   // the gate refused it, or an earlier message of its key was skipped with SkipKey
	Dropped   uint64   // accepted, never run: its stream ended first
	Retried   uint64   // attempts beyond the first
	Committed uint64   // every message with Seq <= Committed is settled: succeeded, or skipped by OnFailure
	Unsettled []uint64 // the others of 1..Last, ascending; nil when there are none

	Duplicates uint64 // settled by an earlier stream of the session: received and not run
	Last       uint64 // the highest number received; without a session that is Received
}

// String returns the counts that are not zero and what is settled, on one line:
// "5 received: 3 succeeded, 1 failed, 1 dropped; 2 retried; settled up to 3".
func (s Summary) String() string {
	b := []byte("nothing received")
	if s.Received > 0 {
		b = append(strconv.AppendUint(nil, s.Received, 10), " received"...)
	}
	separator := ": "
	for _, c := range [...]struct {
		n    uint64
		name string
	}{
		{s.Succeeded, "succeeded"}, {s.Failed, "failed"}, {s.Rejected, "rejected"}, {s.Dropped, "dropped"},
		{s.Duplicates, "settled before"},
	} {
		if c.n > 0 {
			b = append(b, separator...)
			b = strconv.AppendUint(b, c.n, 10)
			b = append(append(b, ' '), c.name...)
			separator = ", "
		}
	}
	if s.Retried > 0 {
		b = append(b, "; "...)
		b = strconv.AppendUint(b, s.Retried, 10)
		b = append(b, " retried"...)
	}
	if s.Committed > 0 || len(s.Unsettled) > 0 { // neither is counted over streams, in Stats.Total
		b = append(append(b, "; "...), s.Progress().String()...)
	}
	return string(b)
}

// add adds what a stream has finished.
func (s *Summary) add(o Summary) {
	s.Succeeded += o.Succeeded
	s.Failed += o.Failed
	s.Rejected += o.Rejected
	s.Dropped += o.Dropped
	s.Retried += o.Retried
	s.Duplicates += o.Duplicates
	s.Received = s.Succeeded + s.Failed + s.Rejected + s.Dropped + s.Duplicates
}

// Stats is a snapshot of a Flow.
type Stats struct {
	Streams    int     // Runs under way
	InFlight   int     // messages whose handler runs
	Calls      int     // handler calls under way: with [NewBatch] one is of many messages, else of one
	Waiting    int     // messages accepted that neither run nor are finished
	ActiveKeys int     // keys that have either
	Capacity   int     // Options.Backpressure.Capacity: how many may run at once; 0 is unlimited
	Total      Summary // of finished messages, over all streams so far; its Committed and Unsettled are zero
}

// Stream is a Run under way, or one that is over: see [Flow.Start]. It is safe for concurrent use.
type Stream struct{ run startedRun }

// startedRun is what a Stream needs of the run of any message type.
type startedRun interface {
	committedNow() uint64
	progressNow() Progress
	stop(drain bool)
	wait() (Summary, error)
}

// Committed returns the Seq up to which every message is settled so far. It is one atomic read. What has finished shows in
// it a moment later, and it never goes back.
func (s *Stream) Committed() uint64 { return s.run.committedNow() }

// Progress returns which messages are settled at this moment. It is exact; its cost grows with what is pending. It blocks
// for some microseconds, never for a handler.
func (s *Stream) Progress() Progress { return s.run.progressNow() }

// Stop ends this stream as [Flow.Shutdown] without DrainOnClose ends all of them: it is read no further, what waits for its
// turn, for a slot or for its next try is dropped, and what runs finishes with its context as it was. It does not wait, and
// more than once is harmless. Wait then returns a failure of kind [FailureShutdown], unless all that was received was done
// and recv had said io.EOF. A recv that is blocked is not woken: what it returns later is lost.
func (s *Stream) Stop() { s.run.stop(false) }

// Wait blocks until the stream is over and returns what [Flow.Run] would have returned, as often as it is called.
func (s *Stream) Wait() (Summary, error) { return s.run.wait() }

// started is a run on a goroutine of its own.
type started[T any] struct {
	s    *stream[T]
	over chan struct{} // closed when sum and err are set
	sum  Summary
	err  error
}

func (st *started[T]) committedNow() uint64  { return st.s.committed.Load() }
func (st *started[T]) progressNow() Progress { return ask(st.s, st.s.progress) }
func (st *started[T]) stop(drain bool)       { st.s.stop(drain) }
func (st *started[T]) wait() (Summary, error) {
	<-st.over
	return st.sum, st.err
}

// invalid is the error of an impossible configuration: it names the field, its value and the rule.
func invalid(field string, value any, rule string) error {
	return fmt.Errorf("flow: Options.%s %s (got %v)", field, rule, value)
}

var (
	errNilHandler = errors.New("flow: handler must not be nil")
	errNilKey     = errors.New("flow: key must not be nil when Options.Ordering.Mode is OrderingKeyedFIFO")
)

// mustBeValid is how the constructors of single parts refuse what New returns as an error.
func mustBeValid(err error) {
	if err != nil {
		panic(err.Error())
	}
}

// defaultMaxPendingBytes is MaxPendingBytes where none is given and messages have a size.
const defaultMaxPendingBytes = 64 << 20

// sizeFunc returns what measures a T in bytes. It returns nil if T has no size. It is called once for each message, so
// none of the functions allocates.
func sizeFunc[T any]() func(T) int {
	t := reflect.TypeFor[T]()
	switch {
	case t.Implements(reflect.TypeFor[proto.Message]()):
		return func(v T) int {
			m, _ := any(v).(proto.Message)
			return proto.Size(m)
		}
	case t.Implements(reflect.TypeFor[interface{ Size() int }]()):
		if t.Kind() == reflect.Interface {
			return func(v T) int { return max(0, any(v).(interface{ Size() int }).Size()) }
		}
		// The method as a function of its receiver: to make an interface of a struct would allocate.
		m, _ := t.MethodByName("Size")
		size := m.Func.Interface().(func(T) int)
		return func(v T) int { return max(0, size(v)) }
	case t.Kind() == reflect.String, t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return func(v T) int { return reflect.ValueOf(&v).Elem().Len() }
	}
	return nil
}

// enumName is the String of every enum here: the constant's name, or Type(n) for a value that has none.
func enumName(n int, typ string, names ...string) string {
	if n >= 0 && n < len(names) {
		return names[n]
	}
	return typ + "(" + strconv.Itoa(n) + ")"
}
