package browser_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"

	"example.com/flow/flowdebug/browser"
)

func TestPhoneScrollsInOneDirectionOnly(t *testing.T) {
	s := newSite(t, strings.Repeat("Upload", 30))
	s.page.Add("other", s.flow)
	for key := range hostile {
		s.source.Send("slow "+key, "slow "+key, "bad "+key+"\n"+key)
	}
	for _, width := range []int64{320, 375, 1000} {
		b := openTab(t, s.URL, chromedp.EmulateViewport(width, 700))
		b.await(live)
		b.await(first("failures", 0) + ` !== "None"`)
		if w := eval[int64](b, `document.documentElement.scrollWidth`); w > width {
			t.Errorf("the page is %d pixels wide on a screen of %d", w, width)
		}
		// And what scrolls within the page scrolls there.
		if over := eval[string](b, `[...document.querySelectorAll("main *")].filter((e) => !e.closest(".wide, svg") &&
			e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 100)).join("\n")`); over != "" {
			t.Errorf("on a screen of %d pixels this is cut off: %s", width, over)
		}
		if small := eval[string](b, `[...document.querySelectorAll("a, button")].filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.outerHTML).join("\n")`); small != "" {
			t.Errorf("too small for a thumb: %s", small)
		}
	}
}

// contrast finds texts whose contrast to their background is below what WCAG 2 demands.
const contrast = `(() => {
	const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
	const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const low = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	let seen = 0;
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest("script, noscript")) continue;
		let back = null;
		for (let b = e; b && !back; b = b.parentElement) back = parse(getComputedStyle(b).backgroundColor);
		const [x, y] = [light(parse(getComputedStyle(e).color)), light(back)].sort((a, b) => b - a);
		seen++;
		if ((x + 0.05) / (y + 0.05) < 4.5) low.push(e.tagName + " " + walk.currentNode.textContent + " " + ((x + 0.05) / (y + 0.05)).toFixed(1));
	}
	return seen < 40 ? ["only " + seen + " texts seen"] : low;
})()`

func TestTextIsLegibleByDayAndByNight(t *testing.T) {
	s := newSite(t, "uploads")
	s.page.Add("other", s.flow)
	s.source.Send("slow", "slow", "bad\nerror", "\n")
	for scheme, dark := range map[string]bool{"light": false, "dark": true} {
		b := openTab(t, s.URL, browser.Prefer("prefers-color-scheme", scheme))
		b.await(live)
		b.await(first("failures", 0) + ` !== "None"`)
		for _, state := range []string{"live", "paused", "lost"} {
			eval[any](b, `document.body.dataset.state = "`+state+`"`)
			if low := eval[[]string](b, contrast); len(low) > 0 {
				t.Errorf("%s, %s: low contrast: %s", scheme, state, strings.Join(low, "; "))
			}
		}
		if got := eval[bool](b, `getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)[0] < 128`); got != dark {
			t.Errorf("%s: the page is dark: %v", scheme, got)
		}
	}
}

func TestKeyboardReachesEverything(t *testing.T) {
	s := newSite(t, "uploads")
	s.page.Add("other", s.flow)
	s.source.Send("slow", "slow")
	b := openTab(t, s.URL)
	b.await(live)
	var stops []string
	for range 8 {
		b.press("\t")
		stops = append(stops, eval[string](b, `(document.activeElement.textContent.length < 20 ? document.activeElement.textContent :
			document.getElementById(document.activeElement.getAttribute("aria-labelledby"))?.firstChild.textContent.trim())
			+ (getComputedStyle(document.activeElement).outlineStyle === "solid" ? "" : ": no outline")`))
	}
	want := []string{"Pause", "uploads", "other", "Hottest keys", "Longest-running messages", "Streams", "Recent failures"}
	if !slices.Equal(stops[:7], want) {
		t.Errorf("the tab key stops at %q, want %q", stops, want)
	}
	eval[any](b, `document.getElementById("pause").focus()`)
	b.press(" ")
	if got := eval[string](b, `document.getElementById("pause").getAttribute("aria-pressed") + document.body.dataset.state`); got != "truepaused" {
		t.Fatalf("after a press the page is %s", got)
	}
	before := eval[string](b, first("keys", 2))
	s.source.Send("slow 2", "slow 2", "slow 2", "slow 2")
	time.Sleep(1200 * time.Millisecond) // two events would have come
	if now := eval[string](b, first("keys", 2)); now != before {
		t.Errorf("a paused page goes on: %s, then %s", before, now)
	}
	b.press("\r")
	b.await(live)
	b.await(first("keys", 0) + ` === "slow 2"`)
	eval[any](b, `document.querySelectorAll("nav a")[1].focus()`)
	b.press("\r")
	b.await(`document.querySelector("h1")?.textContent === "other"`)
}

func TestScreenReaderIsToldWhatIsWhat(t *testing.T) {
	s := newSite(t, "uploads")
	s.page.Add("other", s.flow)
	s.source.Send("slow", "slow")
	b := openTab(t, s.URL)
	b.await(live)
	b.await(first("keys", 0) + ` === "slow"`)
	nodes, err := chromedp.Run(b.ctx, func(ctx context.Context, target *chromedp.Target) ([]*accessibility.Node, error) {
		r, err := cdp.Call(ctx, target, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
		return r.Nodes, err
	})
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, n := range nodes {
		if n.Ignored || n.Role == nil || n.Name == nil {
			continue
		}
		var role, name string
		if json.Unmarshal(n.Role.Value, &role) == nil && json.Unmarshal(n.Name.Value, &name) == nil {
			told[role+": "+name] = true
			if strings.HasPrefix(role, "image") || role == "img" {
				told["picture: "+strings.SplitN(name, ":", 2)[0]] = true
			}
		}
	}
	for _, want := range []string{
		"heading: uploads", "heading: Now", "heading: Hottest keys", "status: ", "main: ", "banner: ",
		"navigation: Flows", "button: Pause", "meter: In flight", "table: Hottest keys", "table: Longest-running messages",
		"table: Streams", "table: Recent failures", "columnheader: Waiting", "rowheader: slow",
		"picture: Throughput over three minutes", "picture: Handler over three minutes",
	} {
		if !told[want] {
			t.Errorf("a screen reader finds no %q in %q", want, keys(told))
		}
	}
	live := eval[[]string](b, `[...document.querySelectorAll("[aria-live], [role=status], [role=alert]")].map((e) => e.id)`)
	if !slices.Equal(live, []string{"status"}) {
		t.Errorf("%q are read aloud as they change, want the status alone", live)
	}
}

func keys(m map[string]bool) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	return sorted(list)
}
