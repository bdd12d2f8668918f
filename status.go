package flow

import (
	"context"
	"errors"
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
	retryDelay = time.Second
)

// GRPCStatus is what the client gets. A handler's error keeps its own status, other kinds have their own code. An
// ErrorInfo names the kind, unless the handler's error brings one, and a RetryInfo says that pressure and shutdown pass.
func (f *Failure) GRPCStatus() *status.Status {
	if f == nil {
		return nil
	}
	kind := f.shownKind()
	st := &spb.Status{Code: int32(kind.row().code), Message: f.text()}
	switch kind {
	case FailureNone:
		return status.New(codes.OK, "")
	case FailureHandlerError:
		if f.Err != nil {
			st = status.Convert(unmarked(f.Err)).Proto()
		}
	case FailureContextCancelled:
		if code := contextCode(f.Err); code != codes.OK {
			st.Code = int32(code)
		}
	case FailureInternal:
		if own, ok := status.FromError(f.Err); ok && !panicked(f.Err) {
			st.Code = int32(own.Code())
		}
	}
	if st.Code == int32(codes.OK) { // an error whose status is OK is still an error
		st.Code = int32(kind.row().code)
	}
	st.Message = cutText(st.Message, maxText)
	st.Details = f.details(kind, st.Details)
	return status.FromProto(st)
}

// shownKind is the kind that texts and the status show. A panic is internal wherever it comes to light: its value may be
// a status error, or quote anything.
func (f *Failure) shownKind() FailureKind {
	if f.Kind == FailureHandlerError && panicked(f.Err) {
		return FailureInternal
	}
	return f.Kind
}

// text is constant but for a reason of flow's own.
func (f *Failure) text() string {
	kind := f.shownKind()
	text := kind.row().text
	if kind == FailureInternal {
		return text
	}
	if kind == FailureContextCancelled && contextCode(f.Err) == codes.DeadlineExceeded {
		text = context.DeadlineExceeded.Error()
	}
	if why, ok := errors.AsType[reason](f.Err); ok && string(why) != text {
		text += ": " + string(why)
	}
	return text
}

// details are the handler's, as far as they fit, and flow's.
func (f *Failure) details(kind FailureKind, handlers []*anypb.Any) []*anypb.Any {
	own := &errdetails.ErrorInfo{Reason: kind.row().reason, Domain: errorDomain}
	if f.Seq > 0 {
		own.Metadata = map[string]string{"seq": strconv.FormatUint(f.Seq, 10)}
	}
	info := newDetail(own)
	ours := []*anypb.Any{info}
	if kind == FailureBackpressure || kind == FailureShutdown {
		ours = append(ours, newDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)}))
	}
	for _, d := range handlers { // a status has one ErrorInfo, and the handler's says more than ours
		if d.MessageIs(own) && detailSize(d) <= maxDetails {
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

func newDetail(m proto.Message) *anypb.Any {
	d, err := anypb.New(m)
	if err != nil {
		panic("bug: flow's own detail can't be marshalled: " + err.Error())
	}
	return d
}

// detailSize is what d takes in a marshalled status.
func detailSize(d *anypb.Any) int {
	const fieldDetails = 3
	return protowire.SizeTag(fieldDetails) + protowire.SizeBytes(proto.Size(d))
}

// cutText makes s valid UTF-8, since protobuf refuses any other (and gRPC then drops all details), of n bytes at most.
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

// unmarked takes Permanent's mark off, so that a status error below it counts as itself and not as wrapped.
func unmarked(err error) error {
	for {
		p, ok := err.(*permanentError)
		if !ok {
			return err
		}
		err = p.err
	}
}
