package browser_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const live = `document.getElementById("status").textContent === "Live"`

// first is the text of a cell in the first row of a table.
func first(table string, column int) string {
	return fmt.Sprintf(`document.getElementById(%q).tBodies[0].rows[0]?.cells[%d]?.textContent`, table, column)
}

func TestSlowKeyIsAtTheTopWithinASecond(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL)
	b.await(live)
	var took []time.Duration
	for i := range 5 { // the machine may be busy with something else, but not each time
		key := "slow " + strconv.Itoa(i)
		sent := time.Now()
		for range 10 * (i + 1) { // more than the ones before
			s.source.Send(key)
		}
		b.await(first("keys", 0) + ` === "` + key + `"`)
		took = append(took, time.Since(sent))
		if took[i] <= time.Second {
			break
		}
	}
	if slices.Min(took) > time.Second {
		t.Errorf("it took %v, want a second at most", took)
	}
	b.await(first("keys", 1) + ` === "` + strconv.Itoa(10*len(took)-1) + `"`) // one runs
	b.await(`/ ms$| s$/.test(` + first("keys", 2) + `)`)
	b.await(first("running", 0) + ` === "slow 0"`)
	b.await(`document.getElementById("inflight").textContent === "` + strconv.Itoa(len(took)) + ` of 64"`)
	if said := b.complaints(); said != "" {
		t.Errorf("the page complains: %s", said)
	}
}

func TestFailureIsShown(t *testing.T) {
	s := newSite(t, "uploads")
	b := openTab(t, s.URL)
	b.await(first("failures", 0) + ` === "None"`)
	s.source.Send("good\n", "bad\nno such device")
	b.await(first("failures", 3) + ` === "no such device"`)
	for column, want := range map[int]string{1: "bad", 2: "HandlerError, skipped", 4: "1", 5: "1", 6: "2"} {
		if got := eval[string](b, first("failures", column)); got != want {
			t.Errorf("column %d is %q, want %q", column, got, want)
		}
	}
	b.await(`/Failed\s*1/.test(document.getElementById("numbers").innerText)`)
	b.await(`/L\d+,(?!100\.0)/.test(document.querySelector("#plots path.second").getAttribute("d"))`) // the curve leaves zero
}

// hostile are keys, and how they are to be shown.
var hostile = map[string]string{
	`<img src=x onerror="document.title='owned'">`:    `<img src=x onerror="document.title='owned'">`,
	`</td></table><script>document.title=1</script>`:  `</td></table><script>document.title=1</script>`,
	`&lt;b&gt; ' " ` + "` ${alert(1)}":                `&lt;b&gt; ' " ` + "` ${alert(1)}",
	`javascript:alert(1)`:                             `javascript:alert(1)`,
	"\u202egnp.exe":                                   `\u202egnp.exe`,
	"\x00\x1b[31mred\a":                               `\x00\x1b[31mred\a`,
	"\xff\xfe":                                        `\xff\xfe`,
	"\u200b\ufeff":                                    `\u200b\ufeff`,
	"data: 1\r\rdata: {}":                             `data: 1\r\rdata: {}`,
	"z" + strings.Repeat("\u0351", 40):                "z" + strings.Repeat("\u0351", 40),
	strings.Repeat("W", 100_000):                      strings.Repeat("W", 123) + "…", // "slow " is before it
	"  two  spaces  and a word of a foreign tongue א": "  two  spaces  and a word of a foreign tongue א",
}

func TestHostileTextIsText(t *testing.T) {
	const name = `<b>"uploads"</b>&`
	s := newSite(t, name)
	s.page.Add("other", s.flow)
	var want []string
	for key, shown := range hostile {
		s.source.Send("slow "+key, "slow "+key, "bad "+key+"\n"+key)
		want = append(want, "slow "+shown)
	}
	b := openTab(t, s.URL)
	texts := func(table string, column int) []string {
		return eval[[]string](b, fmt.Sprintf(`[...document.getElementById(%q).tBodies[0].rows].map((r) => r.cells[%d].textContent)`, table, column))
	}
	b.await(fmt.Sprintf(`document.getElementById("failures").tBodies[0].rows.length === %d`, len(hostile)))
	for _, table := range []string{"keys", "running"} {
		got := texts(table, 0)
		if slices.Sort(got); !slices.Equal(got, sorted(want)) {
			t.Errorf("%s shows\n%q, want\n%q", table, got, sorted(want))
		}
	}
	var errs []string
	for key, shown := range hostile {
		if len(key) > 512 { // an error may be longer than a key
			shown = strings.Repeat("W", 512) + "…"
		}
		errs = append(errs, shown)
	}
	got := texts("failures", 3)
	if slices.Sort(got); !slices.Equal(got, sorted(errs)) {
		t.Errorf("errors are shown as\n%q, want\n%q", got, sorted(errs))
	}
	if got := eval[string](b, `document.querySelector("h1").textContent + "|" + document.title + "|" + document.querySelector("nav a").textContent`); got !=
		name+"|"+name+" – flow|"+name {
		t.Errorf("the name is shown as %s", got)
	}
	if n := eval[int](b, `document.querySelectorAll("script, img, b, iframe, [onerror]").length`); n != 1 {
		t.Errorf("%d elements that could do harm, want one, the page's script", n)
	}
	if said := b.complaints(); said != "" {
		t.Errorf("the page complains: %s", said)
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }
