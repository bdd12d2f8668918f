package flowclient

import "time"

// backoff is an exponential delay, half of which is random.
type backoff struct {
	first, most time.Duration
	random      func() float64 // from 0 to below 1

	failures int // in a row
}

// next returns the delay after one more failure.
func (b *backoff) next() time.Duration {
	d := b.first
	for range b.failures {
		if d >= b.most/2 {
			d = b.most
			break
		}
		d *= 2
	}
	if d < b.most {
		b.failures++
	}
	return d/2 + time.Duration(b.random()*float64(d-d/2))
}

func (b *backoff) reset() { b.failures = 0 }

// pacing decides how long the Sender waits between two streams. Progress is a counter that rises with each settled
// message.
type pacing struct {
	backoff  backoff
	progress uint64 // when it was last looked at

	restarted, asked mark
	unauthorized     bool // a stream was refused as unauthenticated, and nothing has come on since
}

// mark remembers the progress at the last end of a kind.
type mark struct {
	set      bool
	progress uint64
}

// stalled reports whether there was no progress since the last end of this kind, and notes that there was one more.
func (m *mark) stalled(progress uint64) bool {
	stalled := m.set && m.progress == progress
	*m = mark{true, progress}
	return stalled
}

// look takes note of progress, which resets the backoff.
func (p *pacing) look(progress uint64) {
	if progress != p.progress {
		p.progress = progress
		p.unauthorized = false
		p.backoff.reset()
	}
}

// restart returns the delay before the next stream after an end that is no failure: none, unless the one before that
// brought nothing on either.
func (p *pacing) restart() time.Duration {
	if p.restarted.stalled(p.progress) {
		return p.backoff.next()
	}
	return 0
}

// wait returns the delay after a failure with which the server asked for one.
func (p *pacing) wait(asked time.Duration) time.Duration {
	if p.asked.stalled(p.progress) {
		return max(asked, p.backoff.next())
	}
	return asked
}

// unauthenticated returns the delay after a stream that was refused as unauthenticated, and false after the second one
// without progress: a token may have run out, but a new one runs out too.
func (p *pacing) unauthenticated() (time.Duration, bool) {
	if p.unauthorized {
		return 0, false
	}
	p.unauthorized = true
	return p.backoff.next(), true
}
