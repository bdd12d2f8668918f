package testkit

import (
	"context"
	"strings"
	"sync"

	"example.com/flow"
	"google.golang.org/grpc/metadata"
)

// SessionMetadata returns what a header or the trailers say of a session, without the binary progress: "new epoch 1 committed 0".
func SessionMetadata(md metadata.MD) string {
	var parts []string
	for _, key := range []string{"flow-session", "flow-epoch", "flow-committed", "flow-failed"} {
		if values := md.Get(key); len(values) > 0 {
			part := strings.TrimPrefix(key, "flow-") + " " + strings.Join(values, "+")
			if key == "flow-session" {
				part = strings.Join(values, "+")
			}
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, " ")
}

// Hook is called for the n-th call of that name ("load" or "save") of a HookedStore.
type Hook func(ctx context.Context, call string, n int) error

// HookedStore is a store in memory with a hook before its calls, whose error is returned in the call's place, and one after
// them, whose error is returned though the call was made. It is safe for concurrent use.
type HookedStore struct {
	flow.SessionStore

	mu            sync.Mutex
	before, after Hook
	calls         map[string]int
}

// NewHookedStore returns an empty store without hooks.
func NewHookedStore() *HookedStore {
	return &HookedStore{SessionStore: flow.NewSessionMemory(0, 0), calls: map[string]int{}}
}

// SetBefore sets the hook before each call; nil is none.
func (b *HookedStore) SetBefore(h Hook) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = h
}

// SetAfter sets the hook after each call that succeeded; nil is none.
func (b *HookedStore) SetAfter(h Hook) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.after = h
}

// Called returns the number of calls of that name.
func (b *HookedStore) Called(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[call]
}

// around makes one call between its hooks.
func (b *HookedStore) around(ctx context.Context, call string, do func() error) error {
	b.mu.Lock()
	b.calls[call]++
	n, before, after := b.calls[call], b.before, b.after
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx, call, n); err != nil {
			return err
		}
	}
	if err := do(); err != nil || after == nil {
		return err
	}
	return after(ctx, call, n)
}

// Load is that of [flow.SessionStore].
func (b *HookedStore) Load(ctx context.Context, id flow.SessionID) (s flow.SessionState, version uint64, err error) {
	err = b.around(ctx, "load", func() (err error) {
		s, version, err = b.SessionStore.Load(ctx, id)
		return err
	})
	return s, version, err
}

// Save is that of [flow.SessionStore].
func (b *HookedStore) Save(
	ctx context.Context, id flow.SessionID, s flow.SessionState, version uint64,
) (next uint64, err error) {
	err = b.around(ctx, "save", func() (err error) {
		next, err = b.SessionStore.Save(ctx, id, s, version)
		return err
	})
	return next, err
}
