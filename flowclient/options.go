package flowclient

import (
	"fmt"
	"log/slog"
	"time"

	"example.com/flow"
)

// Options configure a [Sender]. The zero value is usable: each field says what its 0 means.
type Options struct {
	// Session names the session: 1 to 128 bytes from '!' to '~'. "" makes a random name of 128 bits, for the life of one
	// Sender. A Sender with a name of its own calls Resume before the first Send; if it does not and the server knows the
	// session already, the Sender ends with [ErrSessionKnown].
	Session string

	// MaxBuffered bounds the messages that are kept until they are settled. Send blocks while there are so many.
	// 0 means 8192.
	MaxBuffered int
	// MaxBufferedBytes bounds the encoded size of the same messages. A message that is larger than this by itself is taken
	// on while no other is kept. 0 means 16 MiB. It needs messages that have a size: a proto.Message, a method
	// Size() int, a string or a []byte.
	MaxBufferedBytes int64
	// MaxMessageBytes bounds one message: Send refuses a larger one. 0 means 4 MiB, which is what a gRPC server accepts
	// by default. It needs messages that have a size, as MaxBufferedBytes does.
	MaxMessageBytes int

	// MaxStreamAge is how long a stream is written, counted from its first message. Then, or once it has carried half of
	// MaxBuffered or of MaxBufferedBytes, it is half-closed, since only its answer says what is settled. 0 means 5 s.
	MaxStreamAge time.Duration
	// AnswerTimeout is how long a stream may take to answer, counted from its half-close, or from when that was due if
	// the server does not read. Then the Sender resumes with another stream, which cancels what still runs. It doubles
	// each time in a row, so that slow handlers get done. 0 means 60 s.
	AnswerTimeout time.Duration
	// HeaderTimeout is how long a stream may take to be opened and to send its response header. Then it is half-closed,
	// cancelled if it is not answered within a backoff, and another one is opened. If the header comes with that answer,
	// something on the way holds it back, and it is not waited for any more, as with NoHeader. 0 means 10 s.
	HeaderTimeout time.Duration
	// NoHeader sends without waiting for the response header, for proxies that hold it back until the answer. A Sender
	// with a Session of its own calls Resume then: a first stream whose answer is lost finds the session known.
	NoHeader bool

	// Backoff is the delay after the first failure. It doubles with each one that follows without progress, up to
	// MaxBackoff, and half of it is random. The server's RetryInfo lengthens it. 0 means 100 ms.
	Backoff time.Duration
	// MaxBackoff bounds the backoff. 0 means 10 s.
	MaxBackoff time.Duration
	// GiveUpAfter ends the Sender after so long without progress while anything is buffered. 0 means never.
	GiveUpAfter time.Duration

	// OnFailure decides what becomes of a message that the server could not do: f.Seq is its number, f.Value the *Req,
	// f.Err the status of the stream that it ended. nil means Retry for the codes Unavailable, Aborted and
	// DeadlineExceeded, and Stop for others. It is called from the Sender's goroutine, one call at a time, and must call
	// none of its Sender's Send, Resume, Flush and Close, which may wait for that goroutine.
	OnFailure func(f *flow.Failure) Action
	// OnReply is called with each stream's *Resp, from the Sender's goroutine, one call at a time. A stream whose answer
	// was lost has none, so replies don't add up to anything. Like OnFailure it must call nothing that may wait for it.
	OnReply func(reply any)
	// Logger is told of each stream's end, of backoffs, of what the server has lost, and why the Sender ended. It never
	// gets a message, and of the session's name the first 8 bytes. nil means no logs.
	Logger *slog.Logger
}

// Action is what Options.OnFailure decides.
type Action int

const (
	// Stop ends the Sender with the failure.
	Stop Action = iota
	// Retry sends the message again after a backoff, with all that is not settled.
	Retry
	// Skip gives the message up: the server is told that it need not come, and goes on behind it. At most 64 messages
	// can be skipped at once, which means above the first that is neither settled nor skipped: one more is Stop.
	Skip
)

// String returns the constant's name.
func (a Action) String() string {
	switch a {
	case Stop:
		return "Stop"
	case Retry:
		return "Retry"
	case Skip:
		return "Skip"
	}
	return fmt.Sprintf("Action(%d)", int(a))
}

// invalid is the error of an impossible configuration: it names the field, its value and the rule.
func invalid(field string, value any, rule string) error {
	return fmt.Errorf("flowclient: Options.%s %s (got %v)", field, rule, value)
}

func (o *Options) validate() error {
	if len(o.Session) > 128 {
		return invalid("Session", fmt.Sprintf("%d bytes", len(o.Session)), "must be at most 128 bytes long")
	}
	for _, b := range []byte(o.Session) {
		if b < '!' || b > '~' {
			return invalid("Session", fmt.Sprintf("%q", o.Session), "must consist of bytes from '!' to '~'")
		}
	}
	const negative = "must not be negative"
	switch {
	case o.MaxBuffered < 0:
		return invalid("MaxBuffered", o.MaxBuffered, negative)
	case o.MaxBufferedBytes < 0:
		return invalid("MaxBufferedBytes", o.MaxBufferedBytes, negative)
	case o.MaxMessageBytes < 0:
		return invalid("MaxMessageBytes", o.MaxMessageBytes, negative)
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"MaxStreamAge", o.MaxStreamAge}, {"AnswerTimeout", o.AnswerTimeout}, {"HeaderTimeout", o.HeaderTimeout},
		{"Backoff", o.Backoff}, {"MaxBackoff", o.MaxBackoff}, {"GiveUpAfter", o.GiveUpAfter},
	} {
		if d.value < 0 {
			return invalid(d.field, d.value, negative)
		}
	}
	full := o.withDefaults()
	if full.MaxBackoff < full.Backoff {
		return invalid("MaxBackoff", full.MaxBackoff, "must not be below Backoff, which is "+full.Backoff.String())
	}
	return nil
}

// withDefaults returns o with each 0 replaced by what it means.
func (o Options) withDefaults() Options {
	def(&o.MaxBuffered, 8192)
	def(&o.MaxBufferedBytes, 16<<20)
	def(&o.MaxMessageBytes, 4<<20)
	def(&o.MaxStreamAge, 5*time.Second)
	def(&o.AnswerTimeout, 60*time.Second)
	def(&o.HeaderTimeout, 10*time.Second)
	def(&o.Backoff, 100*time.Millisecond)
	def(&o.MaxBackoff, max(10*time.Second, o.Backoff))
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
