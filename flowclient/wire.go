package flowclient

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"

	"example.com/flow"
	"google.golang.org/grpc/metadata"
)

// The metadata of a session's streams.
const (
	keySession   = "flow-session"
	keyStart     = "flow-start"
	keyEpoch     = "flow-epoch"
	keySkip      = "flow-skip"
	keyCommitted = "flow-committed"
	keyProgress  = "flow-progress-bin"
	keyFailed    = "flow-failed"

	foundKnown = "known"
	foundLost  = "lost"
)

// request is what the Sender says in a stream's request header.
type request struct {
	session string
	start   uint64
	epoch   uint64 // 0: a claim
	skips   []uint64
}

// pairs returns keys and values in turn.
func (r request) pairs() []string {
	kv := []string{keySession, r.session, keyStart, strconv.FormatUint(r.start, 10)}
	if r.epoch > 0 {
		kv = append(kv, keyEpoch, strconv.FormatUint(r.epoch, 10))
	}
	if len(r.skips) > 0 {
		numbers := make([]string, len(r.skips))
		for i, n := range r.skips {
			numbers[i] = strconv.FormatUint(n, 10)
		}
		kv = append(kv, keySkip, strings.Join(numbers, ","))
	}
	return kv
}

// answer is what a response header or trailers say. What is absent is zero.
type answer struct {
	epoch    uint64
	found    string
	failed   uint64
	told     bool // progress was there
	progress flow.Progress
	top      uint64 // the highest number that may be settled
}

// readAnswer reads a response header or trailers.
func readAnswer(md metadata.MD) (a answer, err error) {
	if a.epoch, err = number(md, keyEpoch); err != nil {
		return answer{}, err
	}
	if a.failed, err = number(md, keyFailed); err != nil {
		return answer{}, err
	}
	if found := md.Get(keySession); len(found) > 0 {
		a.found = found[0]
	}
	if len(md.Get(keyCommitted))+len(md.Get(keyProgress)) == 0 {
		return a, nil
	}
	if a.progress, a.told = flow.ProgressFromTrailer(md); !a.told {
		return answer{}, senseless("malformed %s, or %s", keyCommitted, keyProgress)
	}
	a.top = a.progress.Committed()
	if packed := md.Get(keyProgress); len(packed) == 1 {
		a.top, _ = binary.Uvarint([]byte(packed[0]))
		if len(packed[0]) > maxProgress-2*binary.MaxVarintLen64 { // it may have been cut
			a.top = math.MaxUint64
		}
	}
	return a, nil
}

// maxProgress bounds flow-progress-bin of a session: what does not fit is left out. It is the server's maxSessionProgress.
const maxProgress = 1280

// number reads a number above 0; 0 means that there is none.
func number(md metadata.MD, key string) (uint64, error) {
	values := md.Get(key)
	if len(values) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(values[0], 10, 64)
	if err != nil || n == 0 || len(values) > 1 {
		return 0, senseless("%s %q", key, values)
	}
	return n, nil
}
