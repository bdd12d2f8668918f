package flow

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/metadata"
)

// What client and server say of a session, all of it in metadata.
const (
	headerSession = "flow-session" // request: the name; response: how it was found
	headerStart   = "flow-start"
	headerSkip    = "flow-skip"
	headerEpoch   = "flow-epoch" // of the request, of the response and of the trailers

	trailerFailed = "flow-failed"

	maxSessionName  = 128     // bytes
	maxSessionSeq   = 1 << 62 // so that no count of a stream's messages overflows
	maxSessionSkips = 64
	// maxAdoptedEpoch bounds the epoch that a client may bring along, so that no number of claims overflows it.
	maxAdoptedEpoch = 1 << 62

	// maxSessionProgress bounds the binary progress of a session, so that all that flow adds to a header or to trailers
	// is within 2 KiB: base64 takes a third, and nginx answers 502 to a header of more than 4 KiB.
	maxSessionProgress = 1280
)

// sessionFound is how a stream found its session: what the flow-session response header says.
type sessionFound string

const (
	sessionNew   sessionFound = "new"
	sessionKnown sessionFound = "known"
	sessionLost  sessionFound = "lost" // the client knows of messages that the server doesn't
)

// sessionRequest is what a client asks for.
type sessionRequest struct {
	name  string
	first uint64   // the number of the stream's first message
	epoch uint64   // 0: the client claims the session
	skip  []uint64 // numbers that the client gives up, ascending and not below first
}

// claims reports whether the session is to be taken over from whoever writes it.
func (r *sessionRequest) claims() bool { return r.epoch == 0 }

// parseSessionRequest reads the request's headers. asked is false if the client asks for no session: then all the others
// mean nothing. The error is made for the client to see; it never quotes a name.
func parseSessionRequest(md metadata.MD) (r sessionRequest, asked bool, err error) {
	names := md.Get(headerSession)
	if len(names) == 0 {
		return r, false, nil
	}
	r.first = 1
	if r.name, _, err = single(md, headerSession); err != nil {
		return r, true, err
	}
	if !validSessionName(r.name) {
		return r, true, fmt.Errorf("%s must be 1 to %d bytes from ! to ~ (got %d bytes)", headerSession, maxSessionName, len(r.name))
	}
	if text, there, err := single(md, headerStart); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.first, ok = parseNumber(text, maxSessionSeq); !ok {
			return r, true, malformed(headerStart, fmt.Sprintf("a decimal number from 1 to %d", uint64(maxSessionSeq)), text)
		}
	}
	if text, there, err := single(md, headerEpoch); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.epoch, ok = parseNumber(text, 1<<64-1); !ok {
			return r, true, malformed(headerEpoch, "the decimal number that the server gave", text)
		}
	}
	if text, there, err := single(md, headerSkip); err != nil {
		return r, true, err
	} else if there {
		var ok bool
		if r.skip, ok = parseSkips(text, r.first); !ok {
			return r, true, malformed(headerSkip,
				fmt.Sprintf("at most %d ascending decimal numbers from %s to %d, joined by commas", maxSessionSkips, headerStart, uint64(maxSessionSeq)), text)
		}
	}
	return r, true, nil
}

// single is a header that must not come twice.
func single(md metadata.MD, key string) (text string, there bool, err error) {
	switch values := md.Get(key); len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	default:
		return "", true, fmt.Errorf("%s must not come twice (got it %d times)", key, len(values))
	}
}

const maxQuotedHeader = 24 // bytes: no more is needed to recognize a number

func malformed(key, rule, text string) error {
	return fmt.Errorf("%s must be %s (got %q)", key, rule, cutText(text, maxQuotedHeader))
}

func validSessionName(name string) bool {
	return 0 < len(name) && len(name) <= maxSessionName &&
		!strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' })
}

// parseNumber reads a decimal number of 1..highest in its one form.
func parseNumber(text string, highest uint64) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil && n > 0 && n <= highest && text[0] != '0' && text[0] != '+'
}

func parseSkips(text string, first uint64) ([]uint64, bool) {
	if strings.Count(text, ",") >= maxSessionSkips { // before anything is allocated for them
		return nil, false
	}
	var skip []uint64
	last := first - 1
	for part := range strings.SplitSeq(text, ",") {
		seq, ok := parseNumber(part, maxSessionSeq)
		if !ok || seq <= last {
			return nil, false
		}
		last = seq
		skip = append(skip, seq)
	}
	return slices.Clip(skip), true
}

// sessionHeader is the response header: the sign that the server has sessions.
func sessionHeader(epoch uint64, found sessionFound, p Progress) metadata.MD {
	md := p.metadata(maxSessionProgress)
	md.Set(headerEpoch, strconv.FormatUint(epoch, 10))
	md.Set(headerSession, string(found))
	return md
}

// sessionTrailer says how far the session is; failed is the message whose own failure ended the stream, or 0.
func sessionTrailer(epoch uint64, p Progress, failed uint64) metadata.MD {
	md := p.metadata(maxSessionProgress)
	md.Set(headerEpoch, strconv.FormatUint(epoch, 10))
	if failed > 0 {
		md.Set(trailerFailed, strconv.FormatUint(failed, 10))
	}
	return md
}

// failedSeq is the message whose own failure f is; 0 if f is the stream's, or is that of whatever ended the stream.
func failedSeq(f *Failure) uint64 {
	if f == nil || f.Kind == FailureContextCancelled || f.Kind == FailureShutdown {
		return 0
	}
	return f.Seq
}
