package report

import "testing"

func TestRenewKeepsWhatIsAroundTheMarks(t *testing.T) {
	old := "before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n<!-- b: begin -->\nb\n<!-- b: end -->\n"
	got, err := between(old, "a", "new\n")
	want := "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nafter\n<!-- b: begin -->\nb\n<!-- b: end -->\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if again, err := between(got, "a", "new\n"); err != nil || again != got {
		t.Errorf("not the same again: %q, %v", again, err)
	}
	if _, err := between(old, "c", "new"); err == nil {
		t.Error("a file without the marks was renewed")
	}
}
