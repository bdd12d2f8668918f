package flow

import "time"

// The pace of a shard is the length of its runs: one message to begin with, more while runs are quick, one again after a
// run stood still. With runs of one each message crosses two channels, some 450 ns; with long ones that is shared by up
// to 128. A key whose last message was slow runs alone until one was quick again, so that it holds up nobody.
const (
	maxRun    = 128                   // messages in a run, at most
	runTime   = 40 * time.Microsecond // about how long a run may take
	stillTime = 20 * time.Microsecond // a run that has stood still for so long is recalled
	quickRuns = 16                    // of one message, one after the other, before there are longer ones,
	mostQuick = 64 * quickRuns        // and at most after runs that stood still, each of which doubles it
	slowKeys  = 256                   // hashes of slow keys that are remembered; a power of two
)

// pace is a pure value: it is told what was measured and says how to go on.
type pace struct {
	length int32             // of runs, at most
	quick  int32             // runs of one message that were quick, one after the other
	needed int32             // so many of these before there are longer runs
	sound  int32             // messages since needed changed
	slow   *[slowKeys]uint64 // nil: there is none
	nslow  int               // how many of these there are
}

func newPace() pace { return pace{length: 1, needed: quickRuns} }

// observe is told of a run of n messages that took so long. alone says that it was of a key known to be slow, hash is
// that of its first message, and more says that others were waiting to run when it was sent.
func (p *pace) observe(n int32, took time.Duration, hash uint64, alone, more bool) {
	if alone {
		if took < stillTime/2 {
			p.markQuick(hash)
		}
		return
	}
	if n == 1 && took > 2*stillTime {
		p.markSlow(hash)
		p.quick = 0
		return
	}
	if p.sound += n; p.sound >= 4*p.needed {
		p.needed, p.sound = max(p.needed/2, quickRuns), 0
	}
	switch whole := took / time.Duration(n) * time.Duration(p.length); {
	case whole > runTime:
		p.length = max(1, p.length/2)
		p.quick = 0
	case whole > runTime/2 || n < p.length || !more:
	case p.length == 1 && p.quick < p.needed:
		p.quick++
	default:
		p.length = min(2*p.length, maxRun)
	}
}

// stoodStill is told that a message of hash holds up the run that it is in. Where that happens again and again, it takes
// longer each time until there are long runs again, and after many messages of which none did, less long: otherwise they
// would hold strangers up again and again.
func (p *pace) stoodStill(hash uint64) {
	p.markSlow(hash)
	p.length, p.quick = 1, 0
	p.needed, p.sound = min(2*p.needed, mostQuick), 0
}

// most returns how many long runs may be out at once. While even the longest are quick, one worker keeps up with the
// shard, and it keeps the order of receipt and the caches warm; but mail runs, for which the shard does nothing, may be as
// many as processors. Otherwise there are more than processors: a processor that waits for a worker is given work faster
// than one that waits for a run.
func (p *pace) most(processors int, mail bool) int {
	switch {
	case mail:
		return processors
	case p.length == maxRun:
		return 1
	}
	return 2 * processors
}

func (p *pace) isSlow(hash uint64) bool {
	return p.nslow > 0 && hash != 0 && p.slow[hash%slowKeys] == hash
}

func (p *pace) markSlow(hash uint64) {
	if hash == 0 {
		return
	}
	if p.slow == nil {
		p.slow = new([slowKeys]uint64)
	}
	place := &p.slow[hash%slowKeys]
	if *place == 0 {
		p.nslow++
	}
	*place = hash
}

func (p *pace) markQuick(hash uint64) {
	if p.isSlow(hash) {
		p.slow[hash%slowKeys] = 0
		p.nslow--
	}
}

// slowInto adds the slow keys to busy. It reports whether there was room for them.
func (p *pace) slowInto(busy *busyKeys) bool {
	for i, left := 0, p.nslow; left > 0; i++ {
		if hash := p.slow[i]; hash != 0 {
			left--
			if !busy.add(hash) {
				return false
			}
		}
	}
	return true
}
