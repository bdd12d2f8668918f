package flow

import (
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

func TestSessionRequestIsRead(t *testing.T) {
	for _, c := range []struct {
		name string
		md   metadata.MD
		want string
	}{
		{"no session: the others mean nothing", metadata.Pairs("flow-start", "x", "flow-skip", "", "flow-epoch", "0"), "not asked"},
		{"a name alone claims", metadata.Pairs("flow-session", "n"), "{n 1 0 []}"},
		{"all of it", metadata.Pairs("flow-session", "n", "flow-start", "7", "flow-epoch", "3", "flow-skip", "7,9,4611686018427387904"),
			"{n 7 3 [7 9 4611686018427387904]}"},
		{"the longest name", metadata.Pairs("flow-session", strings.Repeat("~", 128)), "{" + strings.Repeat("~", 128) + " 1 0 []}"},
		{"the highest start", metadata.Pairs("flow-session", "!", "flow-start", "4611686018427387904"), "{! 4611686018427387904 0 []}"},
		{"as many skips as there may be", metadata.Pairs("flow-session", "n", "flow-skip", numbers(64)),
			"{n 1 0 [" + strings.ReplaceAll(numbers(64), ",", " ") + "]}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, asked, err := parseSessionRequest(c.md)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(r)
			if !asked {
				got = "not asked"
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// numbers is 1 to n, joined by commas.
func numbers(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint(i+1))
	}
	return strings.Join(list, ",")
}

func TestMalformedHeadersAreRefusedByName(t *testing.T) {
	const secret = "secret-name"
	for header, values := range map[string][]string{
		"flow-session": {"", " ", "a b", "é", "a\x7f", "a\x00", secret + "\n", strings.Repeat("x", 129)},
		"flow-start":   {"", "0", "-1", "+1", "01", " 1", "1.0", "1e3", "0x1", "one", "4611686018427387905", "18446744073709551616", strings.Repeat("9", 9999)},
		"flow-epoch":   {"", "0", "-1", "+1", "01", "x", "18446744073709551616"},
		"flow-skip":    {"", ",", "5,", ",5", "5,,6", "4", "5,5", "6,5", "5, 6", "0", "-5", "4611686018427387905", numbers(65), strings.Repeat(",", 100_000)},
	} {
		for _, value := range values {
			md := metadata.Pairs("flow-session", secret, "flow-start", "5")
			md.Set(header, value)
			_, asked, err := parseSessionRequest(md)
			if !asked || err == nil {
				t.Errorf("%s %.40q is accepted", header, value)
				continue
			}
			f := malformedFailure(err)
			st := f.GRPCStatus()
			if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), header) || len(st.Message()) > 200 {
				t.Errorf("%s %.40q is refused with %v", header, value, st)
			}
			if strings.Contains(st.String(), secret) || strings.Contains(f.Error(), secret) {
				t.Errorf("the name is in %v", f)
			}
		}
	}
	for _, header := range []string{"flow-session", "flow-start", "flow-epoch", "flow-skip"} {
		md := metadata.Pairs("flow-session", secret)
		md.Set(header, "5", "5")
		if _, asked, err := parseSessionRequest(md); !asked || err == nil || !strings.Contains(err.Error(), header+" must not come twice") {
			t.Errorf("%s twice: %v", header, err)
		}
	}
}

func TestHeaderAndTrailerStayWithin2KiB(t *testing.T) {
	// Distances that take five bytes each, more of them than ever fit, and the longest of all other values.
	p := Progress{received: math.MaxUint64 >> 1}
	for i := range 5000 {
		p.unsettled = append(p.unsettled, 1<<62+uint64(i)<<34)
	}
	for name, md := range map[string]metadata.MD{
		"header":  sessionHeader(math.MaxUint64, sessionKnown, p),
		"trailer": sessionTrailer(math.MaxUint64, p, math.MaxUint64),
	} {
		size := 0
		for key, values := range md {
			for _, value := range values {
				if strings.HasSuffix(key, "-bin") {
					value = base64.StdEncoding.EncodeToString([]byte(value))
				}
				size += len(key) + len(value) + 32 // as HTTP/2 counts a header
			}
		}
		if size > 2048 || size < 1900 {
			t.Errorf("the %s takes %d bytes", name, size)
		}
		got, ok := ProgressFromTrailer(md)
		if !ok || got.Committed() != p.Committed() || len(got.unsettled) < 200 {
			t.Errorf("the %s says %d, %v, with %d holes", name, got.Committed(), ok, len(got.unsettled))
		}
	}
}

func TestSessionTrailerSaysWhichMessageFailed(t *testing.T) {
	p := Progress{received: 7, unsettled: []uint64{5}}
	md := sessionTrailer(3, p, failedSeq(&Failure{Kind: FailureHandlerError, Seq: 5}))
	if got := fmt.Sprint(md.Get("flow-epoch"), md.Get("flow-committed"), md.Get("flow-failed")); got != "[3] [4] [5]" {
		t.Errorf("trailers are %s", got)
	}
	for _, f := range []*Failure{nil, {Kind: FailureInternal}, {Kind: FailureContextCancelled, Seq: 5}, {Kind: FailureShutdown, Seq: 5}} {
		if md := sessionTrailer(3, p, failedSeq(f)); len(md.Get("flow-failed")) > 0 {
			t.Errorf("%v is no message's own failure, and yet it is in %v", f, md)
		}
	}
}
