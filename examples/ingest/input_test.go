package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

func TestKeyIsFoundOrTheFaultIsNamed(t *testing.T) {
	for _, c := range []struct{ key, line, want, wrong string }{
		{"2", "a b c", "b", ""},
		{"3", "  a\tb   c  ", "c", ""},
		{"4", "a b c", "", "has 3 columns, the key is in column 4"},
		{"1", "", "", "has 0 columns, the key is in column 1"},
		{"id", `{"id":"x","v":1}`, "x", ""},
		{"id", `{"id":""}`, "", ""},
		{"id", `{"id":12.50}`, "12.50", ""},
		{"id", `{"v":1}`, "", `has no field "id"`},
		{"id", `{"id":null}`, "", `its field "id" is neither a string nor a number`},
		{"id", `{"id":true}`, "", `its field "id" is neither a string nor a number`},
		{"id", `{"id":["x"]}`, "", `its field "id" is neither a string nor a number`},
		{"id", `{"id":"x"`, "", "is not a JSON object"},
		{"id", `["id"]`, "", "is not a JSON object"},
		{"id", `null`, "", "is not a JSON object"},
		{"id", ``, "", "is not a JSON object"},
	} {
		key, wrong := (&config{key: c.key}).keyOf(c.line)
		if key != c.want || wrong != c.wrong {
			t.Errorf("-key %s of %q: %q, %q; want %q, %q", c.key, c.line, key, wrong, c.want, c.wrong)
		}
	}
}

func TestEveryLineIsReadWholeOrItsFaultIsNamed(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	in := &input{cfg: &config{key: "1"}, from: strings.NewReader("a 1\r\n" + long + "\nb \xff\n\nc 2")}
	var got []string
	in.read(func(it item) bool {
		got = append(got, it.key+"|"+it.text+"|"+it.wrong)
		return true
	})
	want := []string{
		"a|a 1|", "||has 1048577 bytes, at most 1048576 are taken", "||is not UTF-8",
		"||has 0 columns, the key is in column 1", "c|c 2|",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("read %q, want %q", got, want)
	}
}

func TestBadLineStopsTheUploadOrIsSkipped(t *testing.T) {
	args := []string{"-in", "testdata/packages.log", "-key", "5"}
	code, out, errs := try(t, context.Background(), "", args...)
	if code != exitFailed || !strings.Contains(errs, "line 8: ") || strings.Contains(errs, "line 9") {
		t.Errorf("stop: exit code %d, %s", code, errs)
	}
	if !strings.Contains(out, "7 of 5 keys") || !strings.Contains(out, yes) {
		t.Errorf("stop: the lines before are to be stored: %s", out)
	}
	code, out, errs = try(t, context.Background(), "", append(args, "-bad", "skip")...)
	if code != exitOK || !strings.Contains(errs, "line 9: has 0 columns, the key is in column 5; skipped") {
		t.Errorf("skip: exit code %d, %s", code, errs)
	}
	if !strings.Contains(out, "bad lines  ") || !strings.Contains(out, yes) {
		t.Errorf("skip: %s", out)
	}
}

func TestManyBadLinesMakeFewWords(t *testing.T) {
	code, out, errs := try(t, context.Background(), strings.Repeat("nothing\n", 1000)+`{"id":7}`+"\n", "-in", "-", "-key", "id", "-bad", "skip")
	if code != exitOK || !strings.Contains(out, yes) {
		t.Errorf("exit code %d, %s", code, out)
	}
	if n := strings.Count(errs, "\n"); n != maxBad+1 || !strings.Contains(errs, "and 995 more bad lines") {
		t.Errorf("%d lines: %s", n, errs)
	}
}

func TestInputThatCantBeReadIsAFailure(t *testing.T) {
	var out, errs bytes.Buffer
	code := run(context.Background(), []string{"-in", "testdata", "-key", "1"}, nil, &out, &errs)
	if code != exitFailed || !strings.Contains(errs.String(), "directory") {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}
