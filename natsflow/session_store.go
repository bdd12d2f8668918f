package natsflow

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"example.com/flow"
	"github.com/nats-io/nats.go/jetstream"
)

// sessionStore keeps sessions in the topic's sessions bucket, for all gateways: a key for each, with its state as the
// value. A version is the revision, which never comes again in a bucket. Reads are the leader's: see Topic.bucket.
//
// The key is the SHA-256 hash of the session's id, since names of owners and clients may be longer than a subject may, and
// of other letters.
type sessionStore struct {
	js     jetstream.JetStream
	bucket string
	fences *knownFences

	mu sync.Mutex
	kv jetstream.KeyValue // nil until the bucket was found
}

var _ flow.SessionStore = (*sessionStore)(nil)

func sessionKey(id flow.SessionID) string {
	sum := sha256.Sum256([]byte(id.String()))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// open looks for the bucket, once it is there.
func (s *sessionStore) open(ctx context.Context) (jetstream.KeyValue, error) {
	s.mu.Lock()
	kv := s.kv
	s.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := s.js.KeyValue(ctx, s.bucket)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kv = kv
	return kv, nil
}

// Load implements flow.SessionStore.
func (s *sessionStore) Load(ctx context.Context, id flow.SessionID) (state flow.SessionState, version uint64, err error) {
	asked := time.Now()
	kv, err := s.open(ctx)
	if err != nil {
		return state, 0, fmt.Errorf("natsflow: load session: %w", err)
	}
	entry, err := kv.Get(ctx, sessionKey(id))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return state, 0, nil
	case err != nil:
		return state, 0, fmt.Errorf("natsflow: load session: %w", err)
	}
	if err := state.UnmarshalBinary(entry.Value()); err != nil {
		return flow.SessionState{}, 0, fmt.Errorf("natsflow: load session: %w", err)
	}
	s.fences.note(id, state.Fence, asked)
	return state, entry.Revision(), nil
}

// Save implements flow.SessionStore.
func (s *sessionStore) Save(ctx context.Context, id flow.SessionID, state flow.SessionState, version uint64) (next uint64, err error) {
	asked := time.Now()
	kv, err := s.open(ctx)
	if err != nil {
		return 0, fmt.Errorf("natsflow: save session: %w", err)
	}
	data, err := state.MarshalBinary()
	if err != nil {
		return 0, fmt.Errorf("natsflow: save session: %w", err)
	}
	if version == 0 {
		next, err = kv.Create(ctx, sessionKey(id), data)
	} else {
		next, err = kv.Update(ctx, sessionKey(id), data, version)
	}
	switch {
	case isConflict(err):
		return 0, flow.ErrSessionMoved
	case err != nil:
		return 0, fmt.Errorf("natsflow: save session: %w", err)
	}
	s.fences.note(id, state.Fence, asked)
	return next, nil
}

// isConflict reports whether a write to a bucket was refused because the revision is another one.
func isConflict(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
