package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

// SessionOptions have a Flow keep sessions: uploads that go on after anything, over as many streams as it takes. The
// client names its session and numbers its messages, both in the metadata of its streams, and the server remembers which
// of them are settled. A client that asks for no session gets a stream as without these options.
type SessionOptions struct {
	// Store keeps the sessions. nil means NewSessionMemory(0, 0), one for each Flow, which forgets with the process. In a store a
	// session is its owner and its name, and not its method: two Flows that do different things must not share one, or an upload
	// to the second goes on where one of the same name to the first has come to.
	Store SessionStore
	// Owner says whose session a stream asks for: the authenticated name of its client, so that nobody gets at the
	// sessions of others by guessing their names. It is called once a stream, before anything else of it. Its error
	// refuses the stream with the error's own status, or else PermissionDenied. nil means one name space for all clients.
	Owner func(ctx context.Context) (string, error)
	// SaveEvery is how often the progress of a running stream is saved, if it has changed. 0 means one second. What was
	// settled since the last Save runs again if the process is killed.
	SaveEvery time.Duration
	// Takeover bounds how long a stream waits until the session's earlier stream is over, and how long it waits for each
	// call of Store. 0 means ten seconds.
	Takeover time.Duration
}

// SessionID names a session: Session.ID and Message.Seq together name a message for ever.
type SessionID struct {
	Owner string // what SessionOptions.Owner said; "" without it
	Name  string // what the client said
}

// String is unique and printable: the owner, a slash and the name, both escaped as parts of a URL's path are.
func (id SessionID) String() string { return url.PathEscape(id.Owner) + "/" + url.PathEscape(id.Name) }

// Session is a session as one of its streams has it. The zero value is none.
type Session struct {
	ID SessionID
	// Epoch counts the claims: it rises by one whenever a client that was not given the session's epoch takes the session
	// over.
	Epoch uint64
	// Fence rises by one whenever another Flow, or another epoch, takes the session on. Of two holders the one with the
	// lower Fence is deposed and may not know it yet: an effect that is guarded by it happens once.
	Fence uint64
}

// ErrSessionMoved says that a session is somebody else's by now. It is the cause (by errors.Is) in the handlers of a
// stream whose session was taken by another one, and what a SessionStore returns for a Save of an outdated version. It
// says nothing of the message: what the handler was doing may or may not have taken effect, and the new stream runs it
// again unless it was settled.
var ErrSessionMoved = errors.New("flow: the session has moved to another stream")

// SessionState is what a SessionStore keeps of a session.
type SessionState struct {
	Epoch    uint64   // see Session
	Fence    uint64   // see Session
	Progress Progress // which of its messages are settled
	GivenUp  []string // the keys of which no more messages run, by SkipKey
}

// SessionStore keeps sessions, by compare-and-set on a version. It is safe for concurrent use, also by several processes
// if they are to share sessions. It owns what it is given: neither side changes a state that the other has seen.
//
// Both calls should heed ctx, which ends after SessionOptions.Takeover at the latest; the result of one that doesn't is
// not waited for. A panic counts as an error.
type SessionStore interface {
	// Load returns the state of a session and its version, which is above 0. An unknown session is the zero state and
	// version 0, and no error.
	Load(ctx context.Context, id SessionID) (s SessionState, version uint64, err error)
	// Save replaces the state of a session if version is the current one, 0 for a session that is not known, and
	// returns the next version. Else it changes nothing and returns an error that is ErrSessionMoved by errors.Is. A
	// version must not come again, not even of a session that was forgotten meanwhile. After any other error it is
	// not known whether the state was saved.
	Save(ctx context.Context, id SessionID, s SessionState, version uint64) (next uint64, err error)
}

// sessionStateFormat is the first byte of a marshalled state. A process that finds another first byte, such as an older
// one that shares a store with a newer one, refuses the state rather than misreading it.
const sessionStateFormat = 1

var errMalformedSessionState = errors.New("flow: malformed session state")

// MarshalBinary writes all of s, for a SessionStore to keep. Unlike Progress.MarshalBinary it leaves nothing out. The
// error is always nil.
//
// The form is a byte 1, then uvarints: epoch, fence, the highest number that the progress speaks of, how many numbers are
// unsettled and for each of them, ascending, its distance to the one before (the first: to 0), how many keys are skipped
// and for each its length, followed by its bytes.
func (s SessionState) MarshalBinary() ([]byte, error) {
	b := []byte{sessionStateFormat}
	b = binary.AppendUvarint(b, s.Epoch)
	b = binary.AppendUvarint(b, s.Fence)
	b = binary.AppendUvarint(b, s.Progress.received)
	b = binary.AppendUvarint(b, uint64(len(s.Progress.unsettled)))
	last := uint64(0)
	for _, seq := range s.Progress.unsettled {
		b = binary.AppendUvarint(b, seq-last)
		last = seq
	}
	b = binary.AppendUvarint(b, uint64(len(s.GivenUp)))
	for _, key := range s.GivenUp {
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
	}
	return b, nil
}

// UnmarshalBinary reads what MarshalBinary wrote. Anything that MarshalBinary can't have written is an error, and s is not
// changed then. It keeps nothing of data. It also bounds what a damaged state can cost: nothing is allocated for a count
// that the data cannot hold.
func (s *SessionState) UnmarshalBinary(data []byte) error {
	if len(data) == 0 || data[0] != sessionStateFormat {
		return errMalformedSessionState
	}
	data = data[1:]
	var numbers [4]uint64 // epoch, fence, received, how many are unsettled
	var ok bool
	for i := range numbers {
		if numbers[i], data, ok = cutUvarint(data); !ok {
			return errMalformedSessionState
		}
	}
	read := SessionState{Epoch: numbers[0], Fence: numbers[1], Progress: Progress{received: numbers[2]}}
	if read.Progress.unsettled, data, ok = cutUnsettled(data, numbers[3], read.Progress.received); !ok {
		return errMalformedSessionState
	}
	if read.GivenUp, data, ok = cutKeys(data); !ok || len(data) > 0 {
		return errMalformedSessionState
	}
	*s = read
	return nil
}

// cutUnsettled reads n distances between unsettled numbers of 1..top. A distance of 0, or one beyond top, cannot have been
// written: it would break the ascending order that the binary searches in a Progress rely on.
func cutUnsettled(data []byte, n, top uint64) (unsettled []uint64, rest []byte, ok bool) {
	if n > uint64(len(data)) { // each takes a byte at least: nothing is allocated for what is not there
		return nil, nil, false
	}
	last := uint64(0)
	unsettled = slices.Grow(unsettled, int(n))
	for range n {
		var distance uint64
		if distance, data, ok = cutUvarint(data); !ok || distance == 0 || distance > top-last {
			return nil, nil, false
		}
		last += distance
		unsettled = append(unsettled, last)
	}
	return unsettled, data, true
}

// cutKeys reads a count and so many keys. The keys are copied out of data, which belongs to the store.
func cutKeys(data []byte) (keys []string, rest []byte, ok bool) {
	n, data, ok := cutUvarint(data)
	if !ok || n > uint64(len(data)) {
		return nil, nil, false
	}
	keys = slices.Grow(keys, int(n))
	for range n {
		var size uint64
		if size, data, ok = cutUvarint(data); !ok || size > uint64(len(data)) {
			return nil, nil, false
		}
		keys = append(keys, string(data[:size]))
		data = data[size:]
	}
	return keys, data, true
}

// reasonSessionMoved is the Reason in the ErrorInfo of a stream whose session is somebody else's. Its ErrorInfo carries
// the epoch that counts: see movedFailure.
const reasonSessionMoved = "SESSION_MOVED"

// sessionError is the cause of a stream that was refused or ended for its session's sake. It decides what the client sees:
// a client that resumes by itself must be able to tell these cases apart. It is made by the functions below only, each for
// one row of the table of refusals that clients rely on. It replaces the code of the failure's kind (see GRPCStatus), and
// it is not changed once it is made.
type sessionError struct {
	code  codes.Code
	text  string // for the client; it quotes no name
	epoch uint64 // of a session that moved: the one that counts now; 0: it did not move
	cause error  // for errors.Is; nil if text says it all
	why   string // the text of the cause, for the Observer
}

func (e *sessionError) Error() string {
	if e.why == "" {
		return e.text
	}
	return e.text + ": " + e.why
}

func (e *sessionError) Unwrap() error { return e.cause }

// sessionErrorOf is the session's error that f is the failure of; nil if it is another. It looks at Err itself and not at
// what that wraps: a session error that a handler has found elsewhere is the handler's, and must not choose the code of
// this stream.
func sessionErrorOf(f *Failure) *sessionError {
	if f == nil {
		return nil
	}
	e, _ := f.Err.(*sessionError) // it never needs guarding: what it wraps is guarded
	return e
}

// movedFailure ends a stream that has, or waits for, epoch own of a session that another one takes in epoch next. A
// writer's own next stream ends it as one that goes on; a claim ends the writer. The code tells the two apart: Aborted
// means that the client may go on, FailedPrecondition that another client writes and it must stop. So does the epoch in the
// ErrorInfo, which is the writer's own in the first case and a higher one in the second. The failure counts as the end of
// a context, since the stream ends as if its client had gone: OnFailure is not asked, and no message is to blame.
func movedFailure(own, next uint64) *Failure {
	code := codes.FailedPrecondition
	if next == own {
		code = codes.Aborted
	}
	return newFailure(FailureContextCancelled, &sessionError{
		code: code, text: "the session has moved to another stream", epoch: next, cause: ErrSessionMoved,
	})
}

// malformedFailure refuses what a client's headers say. It is terminal and not retryable: the same headers would be
// refused again. The text quotes at most a part of the header, and never a session's name.
func malformedFailure(err error) *Failure {
	return newFailure(FailureInternal, &sessionError{code: codes.InvalidArgument, text: err.Error()})
}

// ownerFailure refuses a stream whose Owner returned err. Without a status of its own the error becomes PermissionDenied
// and not Unknown: a client treats Unknown as a broken connection and would try again endlessly. A panic stays internal,
// with the constant text that every panic shows.
func ownerFailure(err error) *Failure {
	c := newCause(err)
	if c.crashed {
		return newFailure(FailureInternal, err)
	}
	e := &sessionError{
		code: codes.PermissionDenied, text: "it can't be told whose session it is", cause: c.unwraps, why: c.text,
	}
	if c.stated && c.code != codes.OK {
		e.code, e.text, e.why = c.code, c.message, ""
	}
	return newFailure(FailureInternal, e)
}

// busyFailure refuses a stream whose session's earlier stream has not ended in time. Unavailable and the RetryInfo of
// FailureBackpressure have the client try again: by then the handler that did not heed its context may have returned.
func busyFailure() *Failure {
	return newFailure(FailureBackpressure, &sessionError{
		code: codes.Unavailable, text: "the session's earlier stream is still busy",
	})
}

// storeFailure refuses a stream for a store that failed. Nothing of the stream has run, so it is as safe to try again as
// after a refusal for pressure, and clients are told so in the same way. The text of the store's error is for the Observer
// alone: it may quote the name of the session or of a host.
func storeFailure(err error) *Failure {
	c := newCause(err)
	return newFailure(FailureBackpressure, &sessionError{
		code: codes.Unavailable, text: "the session store failed", cause: c.unwraps, why: c.text,
	})
}

// errManySkipped is why a stream fails of whose session as many keys are skipped as are remembered, with the first message of
// one more that is to be. The code is one after which no client comes again by itself: the message would only fail again.
var errManySkipped = &sessionError{code: codes.FailedPrecondition, text: reasonManySkipped.Error()}

// What client and server say of a session, all of it in metadata.
const (
	headerSession = "flow-session" // request: the name; response: how it was found
	headerStart   = "flow-start"
	headerSkip    = "flow-skip"
	headerEpoch   = "flow-epoch" // of the request, of the response and of the trailers

	trailerFailed = "flow-failed"

	maxSessionName  = 128     // bytes
	maxSessionSeq   = 1 << 62 // so that no count of a stream's messages overflows
	maxSessionSkips = 64
	// maxAdoptedEpoch bounds the epoch that a client may bring along, so that no number of claims overflows it.
	maxAdoptedEpoch = 1 << 62

	// maxSessionProgress bounds the binary progress of a session, so that all that flow adds to a header or to trailers
	// is within 2 KiB: base64 takes a third, and nginx answers 502 to a header of more than 4 KiB.
	maxSessionProgress = 1280
)

// sessionFound is how a stream found its session: what the flow-session response header says. No number depends on it: a
// client that never sees the header, because a proxy holds it back, is served correctly. It lets the client and the
// Observer notice a state that is gone or older.
type sessionFound string

const (
	sessionNew   sessionFound = "new"
	sessionKnown sessionFound = "known"
	sessionLost  sessionFound = "lost" // the client knows of messages that the server doesn't

	// Of a stream that has not got its session, which is told to the Observer only.
	sessionMoved   sessionFound = "moved"   // another stream has it, or takes it
	sessionRefused sessionFound = "refused" // all else, also that the stream has ended before
)

// sessionRequest is what a client asks for. It is complete before any other stream is ended: a malformed request must not end
// the stream that has the session.
type sessionRequest struct {
	name  string
	first uint64   // the number of the stream's first message
	epoch uint64   // 0: the client claims the session
	skip  []uint64 // numbers that the client gives up, ascending and not below first
}

// claims reports whether the session is to be taken over from whoever writes it. A client sends an epoch only if the
// server has given it one, and never counts by itself; so a writer that was deposed cannot come back with a number of its
// own making.
func (r *sessionRequest) claims() bool { return r.epoch == 0 }

// parseSessionRequest reads the request's headers. asked is false if the client asks for no session: then all the others
// mean nothing. The error is made for the client to see; it never quotes a name.
func parseSessionRequest(md metadata.MD) (r sessionRequest, asked bool, err error) {
	names := md.Get(headerSession)
	if len(names) == 0 {
		return r, false, nil
	}
	r.first = 1
	if r.name, _, err = single(md, headerSession); err != nil {
		return r, true, err
	}
	if !validSessionName(r.name) {
		return r, true, fmt.Errorf("%s must be 1 to %d bytes from ! to ~ (got %d bytes)", headerSession, maxSessionName, len(r.name))
	}
	if text, there, err := single(md, headerStart); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.first, ok = parseNumber(text, maxSessionSeq); !ok {
			return r, true, malformed(headerStart, fmt.Sprintf("a decimal number from 1 to %d", uint64(maxSessionSeq)), text)
		}
	}
	if text, there, err := single(md, headerEpoch); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.epoch, ok = parseNumber(text, 1<<64-1); !ok {
			return r, true, malformed(headerEpoch, "the decimal number that the server gave", text)
		}
	}
	if text, there, err := single(md, headerSkip); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.skip, ok = parseSkips(text, r.first); !ok {
			return r, true, malformed(headerSkip,
				fmt.Sprintf("at most %d ascending decimal numbers from %s to %d, joined by commas", maxSessionSkips, headerStart, uint64(maxSessionSeq)), text)
		}
	}
	return r, true, nil
}

// single is a header that must not come twice.
func single(md metadata.MD, key string) (text string, there bool, err error) {
	switch values := md.Get(key); len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	default:
		return "", true, fmt.Errorf("%s must not come twice (got it %d times)", key, len(values))
	}
}

const maxQuotedHeader = 24 // bytes: no more is needed to recognize a number

// malformed is the error of a header that does not follow rule. What the client has sent is quoted only in part: a header
// may have kilobytes, and the text is returned in the status.
func malformed(key, rule, text string) error {
	return fmt.Errorf("%s must be %s (got %q)", key, rule, cutText(text, maxQuotedHeader))
}

// validSessionName accepts visible ASCII only, and no space: the name stands in a header and in logs as it is.
func validSessionName(name string) bool {
	return 0 < len(name) && len(name) <= maxSessionName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' })
}

// parseNumber reads a decimal number of 1..highest in its one form. Leading zeros, a plus sign and 0 are refused, so that
// two clients cannot write one number in two ways. ParseUint alone would accept leading zeros.
func parseNumber(text string, highest uint64) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil && n > 0 && n <= highest && text[0] != '0' && text[0] != '+'
}

// parseSkips reads the numbers that the client gives up. They must ascend and not be below first, since mergeSettled and
// settledBefore search them by binary search; what is below first is settled anyway.
func parseSkips(text string, first uint64) ([]uint64, bool) {
	if strings.Count(text, ",") >= maxSessionSkips { // before anything is allocated for them
		return nil, false
	}
	var skip []uint64
	last := first - 1
	for part := range strings.SplitSeq(text, ",") {
		seq, ok := parseNumber(part, maxSessionSeq)
		if !ok || seq <= last {
			return nil, false
		}
		last = seq
		skip = append(skip, seq)
	}
	return slices.Clip(skip), true
}

// sessionHeader is the response header: the sign that the server has sessions. It is sent before the first read, also for
// a stream that will have no messages: that is how a client asks how far the server is.
func sessionHeader(epoch uint64, found sessionFound, p Progress) metadata.MD {
	md := p.metadata(maxSessionProgress)
	md.Set(headerEpoch, strconv.FormatUint(epoch, 10))
	md.Set(headerSession, string(found))
	return md
}

// sessionTrailer says how far the session is; failed is the message whose own failure ended the stream, or 0.
func sessionTrailer(epoch uint64, p Progress, failed uint64) metadata.MD {
	md := p.metadata(maxSessionProgress)
	md.Set(headerEpoch, strconv.FormatUint(epoch, 10))
	if failed > 0 {
		md.Set(trailerFailed, strconv.FormatUint(failed, 10))
	}
	return md
}

// failedSeq is the message whose own failure f is; 0 if f is the stream's, or is that of whatever ended the stream. A
// client must not blame a message for a stream that a shutdown or a broken connection has ended: by flow-failed it decides
// whether to skip that message.
func failedSeq(f *Failure) uint64 {
	if f == nil || f.Kind == FailureContextCancelled || f.Kind == FailureShutdown {
		return 0
	}
	return f.Seq
}
