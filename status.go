package flow

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	errorDomain = "example.com/flow" // of the ErrorInfo: the module path

	maxText    = 512  // bytes of a text that goes to a client
	maxDetails = 2048 // bytes of the details in a status: C-core refuses a response of more than about 7 KiB
	// What clients are told to wait after pressure and a shutdown. When either will be over is not known here; but without
	// a RetryInfo many would not try again at all.
	retryDelay = time.Second
)

// GRPCStatus is what the client gets. A handler's error keeps its own status, other kinds have their own code. An
// ErrorInfo names the kind, unless the handler's error brings one of another Domain (one of flow's, of a service behind
// this one, speaks of another stream and is replaced), and a RetryInfo says that pressure and shutdown pass.
//
// gRPC calls it after the service method has returned, where no panic is recovered. So, of a Failure that flow has made, it
// calls no method of the cause: all that it says was asked when the Failure was made. The cause's code is believed only
// for kinds in which it is the caller's choice; that of a panic's value never is.
func (f *Failure) GRPCStatus() *status.Status {
	if f == nil {
		return nil
	}
	c := f.said()
	kind := f.shownKind(c)
	st := &spb.Status{Code: int32(kind.row().code), Message: f.constantText(c)}
	var details []*anypb.Any
	switch kind {
	case FailureNone:
		return status.New(codes.OK, "")
	case FailureHandlerError:
		if f.Err != nil {
			st.Code, st.Message, details = int32(c.code), c.message, c.details
		}
	// Canceled, unless the error says that it was a deadline.
	case FailureContextCancelled:
		if c.ended != codes.OK {
			st.Code = int32(c.ended)
		}
	// A source that broke keeps the code that it has stated, such as the ResourceExhausted of a message that is too large.
	case FailureInternal:
		if c.stated && !c.crashed {
			st.Code = int32(c.code)
		}
	}
	if e := sessionErrorOf(f); e != nil {
		// Kinds are too few for what a client with a session must tell apart: see sessionError.
		st.Code = int32(e.code)
	}
	if st.Code == int32(codes.OK) { // an error whose status is OK is still an error
		st.Code = int32(kind.row().code)
	}
	st.Details = f.details(kind, details)
	return status.FromProto(st)
}

// shownKind is the kind that texts and the status show. A panic is internal wherever it comes to light: its value may be a
// status error, or quote anything. The Kind itself is left to Go callers, who may look at the panic by errors.As.
func (f *Failure) shownKind(c *cause) FailureKind {
	if f.Kind == FailureHandlerError && c.crashed {
		return FailureInternal
	}
	return f.Kind
}

// constantText is what is shown of a failure that is not the handler's: constant but for a reason of flow's own. Keys,
// values and the texts of other causes must not get into a status, nor into Error, which gRPC sends when a Failure is
// wrapped.
func (f *Failure) constantText(c *cause) string {
	kind := f.shownKind(c)
	text := kind.row().text
	if e := sessionErrorOf(f); e != nil {
		return e.text
	}
	if kind == FailureInternal {
		return text
	}
	if kind == FailureContextCancelled && c.ended == codes.DeadlineExceeded {
		text = context.DeadlineExceeded.Error()
	}
	if c.why != "" && string(c.why) != text {
		text += ": " + string(c.why)
	}
	return text
}

// details are the handler's, as far as they fit, and flow's.
//
// A RetryInfo makes clients try again that would not by the code alone: OTLP's, for one, take ResourceExhausted for final
// without it. All of it together is at most maxDetails, because details and trailers share what a response may have. The
// order of the handler's details is kept; one that does not fit is left out, and a smaller one behind it is not.
func (f *Failure) details(kind FailureKind, handlers []*anypb.Any) []*anypb.Any {
	own := &errdetails.ErrorInfo{Reason: kind.row().reason, Domain: errorDomain}
	if f.Seq > 0 {
		own.Metadata = map[string]string{"seq": strconv.FormatUint(f.Seq, 10)}
	}
	// It takes the place of the seq: a session is moved from a stream, not from a message, and the client compares this
	// epoch with its own.
	if e := sessionErrorOf(f); e != nil && e.epoch > 0 {
		own.Reason = reasonSessionMoved
		own.Metadata = map[string]string{"epoch": strconv.FormatUint(e.epoch, 10)}
	}
	info := newDetail(own)
	ours := []*anypb.Any{info}
	if kind == FailureBackpressure || kind == FailureShutdown {
		ours = append(ours, newDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)}))
	}
	for _, d := range handlers { // a status has one ErrorInfo, and the handler's says more than ours
		if d.MessageIs(own) {
			info, ours = d, nil
			break
		}
	}
	room := maxDetails - detailSize(info) // whosever it is, it has its place before the others; a RetryInfo meets none
	var all []*anypb.Any
	for _, d := range handlers {
		switch size := detailSize(d); {
		case d == info:
			all = append(all, d)
		case size <= room:
			all = append(all, d)
			room -= size
		}
	}
	return append(all, ours...)
}

// contradicts reports whether d is an ErrorInfo that can't stand beside flow's own or for it: one of flow's, which a
// service behind this one has made and which speaks of a message of that one's stream, or one that can't be read. Were it
// passed on, a client would take a number of the other stream for one of its own and blame the wrong message.
func contradicts(d *anypb.Any) bool {
	var info errdetails.ErrorInfo
	return d.MessageIs(&info) && (d.UnmarshalTo(&info) != nil || info.GetDomain() == errorDomain)
}

// retryInfoDelay is the delay that d asks for if it is a RetryInfo. It is the server behind this one that asks, and what
// it asks for lengthens the delay before the next try. A negative delay asks for none.
func retryInfoDelay(d *anypb.Any) (delay time.Duration, ok bool) {
	var info errdetails.RetryInfo
	if !d.MessageIs(&info) || d.UnmarshalTo(&info) != nil || info.GetRetryDelay().CheckValid() != nil {
		return 0, false
	}
	return max(0, info.GetRetryDelay().AsDuration()), true
}

// isGarbled reports whether st is what gRPC's Recv returns for a message, or a part of one, that it can't decode. There is
// nothing but the text to tell it from an error of the server's: both have the code Internal. It only decides how loud
// SlogObserver is. A text that gRPC changes some day would turn a warning about a client into an error, and do no other
// harm.
func isGarbled(st *status.Status) bool {
	return st.Code() == codes.Internal &&
		(strings.HasPrefix(st.Message(), "grpc: ") || st.Message() == io.ErrUnexpectedEOF.Error())
}

// newDetail packs a detail that flow has made. Its strings are constants and numbers, so it can always be marshalled.
func newDetail(m proto.Message) *anypb.Any {
	d, err := anypb.New(m)
	if err != nil {
		panic("bug: flow's own detail can't be marshalled: " + err.Error())
	}
	return d
}

// detailSize is what d takes in a marshalled status. Tag and length count, since many small details would otherwise exceed
// the bound by what surrounds them.
func detailSize(d *anypb.Any) int {
	const fieldDetails = 3
	return protowire.SizeTag(fieldDetails) + protowire.SizeBytes(proto.Size(d))
}

// cutText makes s valid UTF-8, since protobuf refuses any other (and gRPC then drops all details), of n bytes at most. It
// cuts before it looks at s, for the text may be megabytes of what a client has sent: the few bytes more than n are those
// of a character that begins before the end. A text is cut between characters, or its end would be made invalid again.
func cutText(s string, n int) string {
	s = strings.ToValidUTF8(s[:min(len(s), n+utf8.UTFMax)], string(utf8.RuneError))
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
