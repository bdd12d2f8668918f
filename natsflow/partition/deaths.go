package partition

import (
	"math"
	"slices"
)

// Deaths is what a partition's record says of holders that died: it finds out which message kills them. A message may have
// been under way in a holder that died, and then it is in doubt; after some deaths those in doubt run one at a time, alone
// in their process, and each is noted in the record as the suspect before it runs. A holder that dies with a suspect puts
// the blame on that; a message that was blamed often enough is poison and is not run again.
//
// The zero value is that of a partition whose holders live.
type Deaths struct {
	// Count is how many holders died since nothing was last in doubt.
	Count int `json:"count,omitempty"`
	// Doubt is the highest position that may have been under way in a holder that died, or has lost the partition. 0 means
	// that none is in doubt.
	Doubt uint64 `json:"doubt,omitempty"`
	// Reach is how many messages that the record does not call settled a holder may have under way. In doubt are so
	// many at most, the first.
	Reach int `json:"reach,omitempty"`
	// Suspect is the position of the message that is about to run alone, or runs. 0 means that none does.
	Suspect uint64 `json:"suspect,omitempty"`
	// Blamed are the messages with which holders died, by ascending position.
	Blamed []Blame `json:"blamed,omitempty"`
}

// Blame says how many holders died while the message at Position was the suspect.
type Blame struct {
	Position uint64 `json:"position"`
	Deaths   int    `json:"deaths"`
}

// Lost notes that the holder has lost the partition, and nobody knows how far it was. All that is not settled may have been
// under way, until NotBeyond says better.
func (d *Deaths) Lost() { d.Doubt = math.MaxUint64 }

// Died notes that the holder has lost the partition by its death.
func (d *Deaths) Died() {
	d.Count++
	d.Lost()
	if d.Suspect == 0 {
		return
	}
	i, known := slices.BinarySearchFunc(d.Blamed, d.Suspect, func(b Blame, p uint64) int {
		switch {
		case b.Position < p:
			return -1
		case b.Position > p:
			return 1
		}
		return 0
	})
	d.Blamed = slices.Clone(d.Blamed)
	if known {
		d.Blamed[i].Deaths++
	} else {
		d.Blamed = slices.Insert(d.Blamed, i, Blame{d.Suspect, 1})
	}
	d.Suspect = 0
}

// NotBeyond notes that no message beyond position is in doubt: there was none when the last holder was known to be dead, or
// as many as a holder may have under way come before.
func (d *Deaths) NotBeyond(position uint64) { d.Doubt = min(d.Doubt, position) }

// Held notes that a holder has taken the partition and may have so many messages under way.
func (d *Deaths) Held(window int) {
	if d.Doubt == 0 {
		d.Reach = 0
	}
	d.Reach = max(d.Reach, window)
}

// InDoubt reports whether the message at position, of which rank says how many unsettled ones of the partition came before
// it, may have been under way in a holder that died.
func (d *Deaths) InDoubt(position, rank uint64) bool {
	return position <= d.Doubt && rank < uint64(d.Reach)
}

// Settled notes what is settled now: what is settled is in doubt no more, nor to blame.
func (d *Deaths) Settled(p Progress) {
	if p.Frontier >= d.Doubt {
		d.Count, d.Doubt = 0, 0
	}
	if slices.ContainsFunc(d.Blamed, func(b Blame) bool { return p.Settled(b.Position) }) {
		d.Blamed = slices.DeleteFunc(slices.Clone(d.Blamed), func(b Blame) bool { return p.Settled(b.Position) })
	}
}

// Of is how many holders died while the message at position was the suspect.
func (d *Deaths) Of(position uint64) int {
	for _, b := range d.Blamed {
		if b.Position == position {
			return b.Deaths
		}
	}
	return 0
}
