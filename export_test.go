package flow

// SetRunLength has all shards of f make runs of up to n messages, for as long as that seems best to them.
func SetRunLength[T any](f *Flow[T], n int) {
	r := f.receiver
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sh := range r.shards {
		if sh == nil {
			continue
		}
		select {
		case sh.events <- event[T]{do: func() { sh.pace.length = int32(n) }}:
		default: // it has enough to do
		}
	}
}
