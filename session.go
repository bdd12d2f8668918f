package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"net/url"
	"slices"
	"time"
)

// SessionOptions have a Flow keep sessions: uploads that go on after anything, over as many streams as it takes. The
// client names its session and numbers its messages, both in the metadata of its streams, and the server remembers which
// of them are settled. A client that asks for no session gets a stream as without these options.
type SessionOptions struct {
	// Store keeps the sessions. nil means NewSessionMemory(0, 0), one for each Flow, which forgets with the process.
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
// stream whose session was taken by another one, and what a SessionStore returns for a Save of an outdated version.
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

// sessionStateFormat is the first byte of a marshalled state.
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

// UnmarshalBinary reads what MarshalBinary wrote. Anything that MarshalBinary can't have written is an error, and s is
// not changed then. It keeps nothing of data.
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

// cutUnsettled reads n distances between unsettled numbers of 1..top.
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

// cutKeys reads a count and so many keys.
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
