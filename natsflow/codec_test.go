package natsflow

import (
	"fmt"
	"strings"
	"testing"

	"example.com/flow"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// The partition of a key is part of the format: a process that hashes it in another way breaks the key's order.
func TestPartitionOfKeyIsWhatItAlwaysWas(t *testing.T) {
	for _, c := range []struct {
		key      string
		n, which int
	}{{"", 64, 38}, {"a", 64, 27}, {"device-7", 64, 60}, {"device-8", 64, 39}, {"device-7", 12, 0}, {"\xff\x00", 4096, 1914}, {"x", 1, 0}} {
		if got := partitionOf(c.key, c.n); got != c.which {
			t.Errorf("partitionOf(%q, %d) = %d, want %d", c.key, c.n, got, c.which)
		}
	}
}

func TestPartitionsAreEven(t *testing.T) {
	for _, n := range []int{2, 3, 8, 64} {
		for _, form := range []string{"%d", "device-%d", "%08x", "%d000"} {
			const keys = 20_000
			count := make([]int, n)
			for i := range keys {
				count[partitionOf(fmt.Sprintf(form, 2*i), n)]++
			}
			for p, got := range count {
				if want := keys / n; got < want*7/10 || got > want*13/10 {
					t.Errorf("%d partitions, keys of %q: partition %d has %d of %d", n, form, p, got, keys)
				}
			}
		}
	}
}

func TestStoredMessageSaysWhatItWasMadeOf(t *testing.T) {
	topic := Topic{Name: "uploads", Partitions: 8}
	rapid.Check(t, func(t *rapid.T) {
		any := rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) })
		key, value := any.Draw(t, "key"), rapid.SliceOf(rapid.Byte()).Draw(t, "value")
		session := flow.SessionID{Owner: any.Draw(t, "owner"), Name: any.Draw(t, "name")}
		id := messageID{session: session.String(), number: rapid.Uint64().Draw(t, "number")}
		c := Codec[*wrapperspb.BytesValue]{Key: func(*wrapperspb.BytesValue) string { return key }, Marshal: Proto((*wrapperspb.BytesValue).String).Marshal,
			Unmarshal: Proto((*wrapperspb.BytesValue).String).Unmarshal}
		m := newOutgoing()
		err := c.message(m, topic, id, wrapperspb.Bytes(value))
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range m.Header {
			for _, v := range values {
				if strings.TrimFunc(v, func(r rune) bool { return r > ' ' && r < 0x7f }) != "" {
					t.Fatalf("header %s is %q", name, v)
				}
			}
		}
		if got, ok := storedID(m.Header); got != id || !ok || !got.isSession() {
			t.Fatalf("id %v became %v, %v", id, got, ok)
		}
		if got, ok := storedKey(m.Header); got != key || !ok {
			t.Fatalf("key %q became %q, %v", key, got, ok)
		}
		if want := fmt.Sprintf("uploads.%d", partitionOf(key, 8)); m.Subject != want {
			t.Fatalf("subject %s, want %s", m.Subject, want)
		}
		if v, err := c.Unmarshal(m.Data); err != nil || string(v.Value) != string(value) {
			t.Fatalf("value %q became %v, %v", value, v, err)
		}
	})
}

func TestForeignHeadersAreNoIDAndNoKey(t *testing.T) {
	for _, id := range []string{"", "7", "/7", "s/", "s/x", "s/-1", "s/18446744073709551616"} {
		if got, ok := storedID(map[string][]string{headerID: {id}}); ok {
			t.Errorf("%q became %v", id, got)
		}
	}
	if _, ok := storedID(nil); ok {
		t.Error("an id without a header")
	}
	for _, h := range []map[string][]string{nil, {headerKey: {"%zz"}}, {headerKey: {"a", "b"}}} {
		if got, ok := storedKey(h); ok {
			t.Errorf("%v has key %q", h, got)
		}
	}
	if id, ok := storedID(map[string][]string{headerID: {"made-up/3"}}); !ok || id.isSession() || id.number != 3 {
		t.Errorf("got %v, %v", id, ok)
	}
}

func TestCodecMustBeComplete(t *testing.T) {
	whole := Proto((*wrapperspb.BytesValue).String)
	if err := whole.validate(); err != nil {
		t.Error(err)
	}
	for _, miss := range []func(*Codec[*wrapperspb.BytesValue]){
		func(c *Codec[*wrapperspb.BytesValue]) { c.Key = nil },
		func(c *Codec[*wrapperspb.BytesValue]) { c.Marshal = nil },
		func(c *Codec[*wrapperspb.BytesValue]) { c.Unmarshal = nil },
	} {
		c := whole
		miss(&c)
		if c.validate() == nil {
			t.Error("an incomplete codec passes")
		}
	}
}

func TestProtoOfNoTypePanicsWithItsName(t *testing.T) {
	defer func() {
		if r := fmt.Sprint(recover()); !strings.Contains(r, "natsflow: Proto needs the type of a generated message") {
			t.Error(r)
		}
	}()
	Proto(func(proto.Message) string { return "" })
}
