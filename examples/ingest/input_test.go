package main

import (
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
		"c|c 2|",
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
	if !strings.Contains(out, "7 of 5 keys") || !strings.HasSuffix(out, "replay: as far as it got (7 records); the upload failed\n") {
		t.Errorf("stop: the lines before are to be stored: %s", out)
	}
	code, out, errs = try(t, context.Background(), "", append(args, "-bad", "skip")...)
	if code != exitOK || !strings.Contains(errs, "line 8: has 4 columns, the key is in column 5; skipped") || strings.Contains(errs, "line 9") {
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
	if n := strings.Count(errs, "skipped\n"); n != maxBad || !strings.Contains(errs, "and 995 more bad lines") {
		t.Errorf("%d lines: %s", n, errs)
	}
}

// A directory, and a file that is not there, are told of before anything is sent or shown.
func TestInputThatCantBeReadIsRefusedBeforeTheTable(t *testing.T) {
	for name, want := range map[string]string{"testdata": "must be a file", "nothing": "no such file"} {
		code, out, errs := try(t, context.Background(), "", "-in", name, "-key", "1")
		if code != exitFailed || !strings.Contains(errs, name) || !strings.Contains(errs, want) || out != "" {
			t.Errorf("-in %s: exit code %d, %q, %s", name, code, out, errs)
		}
	}
}

func TestByteOrderMarkIsNoPartOfTheFirstRecord(t *testing.T) {
	for key, lines := range map[string]string{
		"1":  byteOrderMark + "a 1\na 2\n",
		"id": byteOrderMark + `{"id":"a"}` + "\n" + `{"id":"a"}` + "\n",
	} {
		code, out, errs := try(t, context.Background(), lines, "-in", "-", "-key", key)
		if code != exitOK || !strings.Contains(out, "2 of 1 keys") || !strings.HasSuffix(out, yes) {
			t.Errorf("-key %s: exit code %d, %s%s", key, code, out, errs)
		}
	}
}

func TestBlankLinesAreNoRecordsAndNoFaults(t *testing.T) {
	for key, lines := range map[string]string{
		"1":  "\n a 1\n\n  \t\r\nb 2\n\n   ",
		"id": "\r\n" + `{"id":"a"}` + "\n\n" + `{"id":"b"}` + "\n\n",
	} {
		code, out, errs := try(t, context.Background(), lines, "-in", "-", "-key", key)
		if code != exitOK || !strings.Contains(out, "2 of 2 keys") || strings.Contains(out, "bad lines") || !strings.HasSuffix(out, yes) {
			t.Errorf("-key %s: exit code %d, %s%s", key, code, out, errs)
		}
	}
	if _, _, errs := try(t, context.Background(), "\n\nx\n", "-in", "-", "-key", "2"); !strings.Contains(errs, "line 3: has 1 columns") {
		t.Errorf("a line's number counts blank ones: %s", errs)
	}
}
