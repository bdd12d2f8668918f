package flow

// SetRunLength has all shards of f make runs of up to n messages, for as long as that seems best to them.
func SetRunLength[T any](f *Flow[T], n int) {
	onShards(f, func(p *pace) { p.length = int32(n) })
}

// SetOwnRuns has all shards of f run messages on their own goroutines, for as long as that seems best to them.
func SetOwnRuns[T any](f *Flow[T]) {
	onShards(f, func(p *pace) { p.each, p.swift = 0, mostQuick })
}

func onShards[T any](f *Flow[T], set func(*pace)) {
	r := f.receiver
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sh := range r.shards {
		if sh == nil {
			continue
		}
		select {
		case sh.events <- event[T]{do: func() { set(&sh.pace) }}:
		default: // it has enough to do
		}
	}
}
