package flow

// laneFilter says of which keys there is surely no lane: a Bloom filter with one hash function. It is made under the lock
// that guards the lanes, and read without it.
type laneFilter struct {
	empty bool
	bits  [filterWords]uint64
}

// Beside 64 lanes an eighth of the other keys' messages look as if they had one.
const (
	filterWords    = 8
	maxFilterLanes = 64
)

func filterBit(hash uint64) (word, bit uint64) {
	return hash >> 32 % filterWords, 1 << (hash >> 40 % 64)
}

func (f *laneFilter) set(tb *laneTable) {
	if f.empty = tb.lanes == 0; f.empty {
		return
	}
	f.bits = [filterWords]uint64{}
	for _, l := range tb.buckets {
		for ; l != nil; l = l.chain {
			word, bit := filterBit(l.hash)
			f.bits[word] |= bit
		}
	}
}

func (f *laneFilter) has(hash uint64) bool {
	word, bit := filterBit(hash)
	return f.bits[word]&bit != 0
}
