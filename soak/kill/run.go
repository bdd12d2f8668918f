package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// kind is what the servers of a part promise.
type kind int

const (
	withOnce    kind = iota // each effect happens once
	withoutOnce             // what was settled since the last Save runs again after a kill
	inMemory                // what was settled since the client's last answer does
)

func (k kind) String() string {
	return [...]string{"with Once", "without Once", "without Once, sessions in memory"}[k]
}

// part is a run of the processes in one configuration.
type part struct {
	kind           kind
	length         time.Duration // 0: as fast as it goes
	messages       int           // of each session
	keys, sessions int

	swap, twice, lose bool // faults, for tests: of the sender, of the server without Once, and of the server
}

// every is the time from a message to the next.
func (p part) every() time.Duration { return p.length / time.Duration(p.messages) }

// run is a part that is under way.
type run struct {
	part     part
	ctx      context.Context // ends when the run fails
	cancel   context.CancelFunc
	database string
	start    time.Time
	uploads  []*upload
	proxies  []*proxy
	servers  *servers
	senders  *senders
	audit    *audit

	mu     sync.Mutex
	counts counts
}

// counts are what is seen during a run.
type counts struct {
	cuts                            [cuts]int
	serversKilled, deposed          int
	sendersKilled, moved            int
	cutRunning, refused, saveFailed int
	buffered, samples               int
	bufferedBytes, pending          int64
	wrongs                          int
	first                           []string // of wrongs
	cutOff                          *hdrhistogram.Histogram
}

// stalled is how long nothing may get done.
const stalled = time.Minute

// run runs the part and returns what came of it.
func (p part) run(ctx context.Context) (*report, error) {
	before := runtime.NumGoroutine()
	dir, err := os.MkdirTemp("", "flow-kill")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := &run{part: p, database: filepath.Join(dir, "kill.db"), start: time.Now()}
	r.counts.cutOff = hdrhistogram.New(1, time.Hour.Microseconds(), 3)
	r.ctx, r.cancel = context.WithCancel(ctx)
	defer r.cancel()
	for i := range p.sessions {
		r.uploads = append(r.uploads, &upload{name: fmt.Sprintf("upload-%d", i+1), index: i})
	}
	if r.audit, err = newAudit(r); err != nil {
		return nil, err
	}
	defer func() { _ = r.audit.close() }()
	r.servers, r.senders = &servers{run: r}, &senders{run: r}
	r.servers.all = make([]serverPlace, 1)
	if p.kind == withOnce {
		r.servers.all = make([]serverPlace, 2)
	}
	if err := r.all(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	took := time.Since(r.start)
	if err := r.audit.look(); err != nil {
		return nil, err
	}
	rep := &report{part: p, took: took}
	rep.effects, rep.distinct, rep.unsaved = r.audit.totals()
	effects, distinct, err := r.audit.recount()
	if err != nil {
		return nil, err
	}
	if effects != rep.effects || distinct != rep.distinct {
		r.wrong("the database has %d effects, %d of them distinct; read while they came: %d, %d", effects, distinct, rep.effects, rep.distinct)
	}
	_ = r.audit.close()
	if stacks := goroutinesAbove(before); stacks != "" {
		r.wrong("goroutines are left: %s", stacks)
	}
	for _, u := range r.uploads {
		rep.streams += u.streams
		rep.resent += u.resent
	}
	rep.counts = r.counts
	return rep, nil
}

// all starts everything, waits until all is uploaded, and ends everything.
func (r *run) all() error {
	var serving, sending, disturbing sync.WaitGroup
	for place := range r.servers.all {
		serving.Go(func() { r.servers.keep(place) })
	}
	for i, u := range r.uploads {
		p, err := newProxy(r.servers.address, func(how cut) {
			u.broke()
			r.count(func(n *counts) { n.cuts[how]++ })
		})
		if err != nil {
			r.cancel()
			break
		}
		r.proxies = append(r.proxies, p)
		writers := 1
		if i == len(r.uploads)-1 && r.part.kind != inMemory {
			writers = 2
		}
		for range writers {
			sending.Go(func() { r.senders.keep(u, p.address()) })
		}
	}
	uploaded := make(chan struct{})
	go func() {
		sending.Wait()
		close(uploaded)
	}()
	over, end := context.WithCancel(r.ctx)
	disturb := func(least, most time.Duration, how func() bool) {
		disturbing.Go(func() {
			for done := true; ; done = how() {
				pause := least + rand.N(most-least+1)
				if !done {
					pause = 200 * time.Millisecond
				}
				if !r.sleepUntil(over, pause) {
					return
				}
			}
		})
	}
	disturb(2*time.Second, 5*time.Second, r.servers.killActive)
	if r.part.kind != inMemory { // the client must remember what it was told
		disturb(3*time.Second, 3*time.Second, r.senders.killOne)
	}
	if len(r.servers.all) > 1 {
		disturb(2*time.Second, 4*time.Second, r.servers.depose)
	}
	err := r.look(uploaded)
	end()
	disturbing.Wait()
	if err != nil || r.ctx.Err() != nil {
		r.cancel()
		r.senders.killAll()
	}
	<-uploaded
	r.servers.end()
	serving.Wait()
	for _, p := range r.proxies {
		p.close()
	}
	return err
}

// look audits until all is uploaded, or the run has failed.
func (r *run) look(uploaded <-chan struct{}) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	done, since := 0, time.Now()
	for {
		select {
		case <-uploaded:
			return nil
		case <-r.ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.audit.look(); err != nil {
			return err
		}
		if _, distinct, _ := r.audit.totals(); distinct > done {
			done, since = distinct, time.Now()
		}
		if time.Since(since) > stalled && done < r.part.messages*r.part.sessions {
			r.fail("nothing was stored for %v, and %d of %d messages are", stalled, done, r.part.messages*r.part.sessions)
		}
	}
}

func (r *run) count(add func(*counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	add(&r.counts)
}

// wrong notes a broken promise.
func (r *run) wrong(format string, args ...any) {
	r.count(func(n *counts) {
		if n.wrongs++; len(n.first) < 10 {
			n.first = append(n.first, fmt.Sprintf(format, args...))
		}
	})
}

// fail is a broken promise after which nothing can go on.
func (r *run) fail(format string, args ...any) {
	if r.ctx.Err() == nil {
		r.wrong(format, args...)
		r.cancel()
	}
}

func (r *run) resumed(cutOff time.Duration) {
	r.count(func(n *counts) { _ = n.cutOff.RecordValue(max(1, cutOff.Microseconds())) }) // an hour is not exceeded
}

// resumes is how many streams were resumed so far.
func (r *run) resumes() (n int64) {
	r.count(func(c *counts) { n = c.cutOff.TotalCount() })
	return n
}

func (r *run) sleep(d time.Duration) { r.sleepUntil(r.ctx, d) }

// sleepUntil returns after d, or false if ctx ends first.
func (r *run) sleepUntil(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
