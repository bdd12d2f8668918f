package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	pb "example.com/flow/examples/fleet/fleetpb"
)

// The conductor starts its parts as it was started itself: here that is the test's binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && parts[os.Args[1]] != nil {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestFleetLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = write
	said := make(chan string)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, read)
		said <- b.String()
	}()
	err = run(t.Context(), []string{"-messages", "6000", "-pause", "700ms"})
	os.Stdout = stdout
	_ = write.Close()
	text := <-said
	if err != nil || !strings.Contains(text, "nothing lost, nothing twice, in order: yes\n") || !strings.Contains(text, "6000 messages sent, 6000 stored, 6000 done; 9 faults") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestLedgerTellsWhatIsWrong(t *testing.T) {
	const each = 2 * devices
	for name, c := range map[string]struct {
		change  func([]*pb.Effect) []*pb.Effect
		want    counts
		missing int
	}{
		"as sent": {func(l []*pb.Effect) []*pb.Effect { return l }, counts{applied: senders * each}, 0},
		"a zombie's, late": {func(l []*pb.Effect) []*pb.Effect { return append(l, l[0], l[5]) },
			counts{applied: senders * each, refused: 2}, 0},
		"stored twice": {func(l []*pb.Effect) []*pb.Effect {
			return append(l, &pb.Effect{Reading: l[0].Reading, Seq: 9999})
		}, counts{applied: senders*each + 1, twice: 1}, 1}, // and the device ends with what is old
		"the last is lost":  {func(l []*pb.Effect) []*pb.Effect { return l[:len(l)-1] }, counts{applied: senders*each - 1}, 1},
		"the first is lost": {func(l []*pb.Effect) []*pb.Effect { return l[1:] }, counts{applied: senders*each - 1, wrong: 1}, 0},
		"in another order": {func(l []*pb.Effect) []*pb.Effect {
			l[0].Reading, l[devices].Reading = l[devices].Reading, l[0].Reading
			return l
		}, counts{applied: senders * each, wrong: 1, twice: 1}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var list []*pb.Effect
			for s := range senders {
				for i := 1; i <= each; i++ {
					list = append(list, &pb.Effect{Reading: reading(s, i), Seq: uint64(len(list) + 1)})
				}
			}
			l := &ledger{devices: map[string]entry{}}
			for _, e := range c.change(list) {
				if _, err := l.Apply(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
			got := l.look()
			got.longest = 0
			if missing := l.missing(each); got != c.want || missing != c.missing {
				t.Errorf("%+v and %d missing, want %+v and %d", got, missing, c.want, c.missing)
			}
		})
	}
}

func TestFlagsAreChecked(t *testing.T) {
	for args, want := range map[string]string{
		"-messages 31": "-messages is 31: it must be at least 32",
		"-pause 0s":    "-pause is 0s: it must be positive",
		"-replicas 2":  "-replicas is 2: it must be 1, 3 or 5",
		"-bogus":       "flag provided but not defined: -bogus",
		"more":         `unknown argument "more"`,
	} {
		if err := run(t.Context(), strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
