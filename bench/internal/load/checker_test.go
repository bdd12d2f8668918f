package load

import (
	"sync"
	"testing"
)

func handle(c *Checker, list []Message, order ...int) {
	for _, i := range order {
		c.Note(&list[i])
	}
}

func TestCheckerAcceptsOrderPerKey(t *testing.T) {
	list, slots := Stream(Keys64, 1000)
	c := NewChecker(slots)
	for key := range uint32(64) { // key after key: order between keys is nobody's promise
		for i := range list {
			if list[i].Slot == key {
				c.Note(&list[i])
			}
		}
	}
	if c.Breaches() != 0 || c.Done() != 1000 {
		t.Errorf("%d breaches, %d done, want 0 and 1000", c.Breaches(), c.Done())
	}
}

func TestCheckerCatchesAMessageThatOvertakes(t *testing.T) {
	list, slots := Stream(OneKey, 4)
	c := NewChecker(slots)
	handle(c, list, 0, 2, 1, 3)
	if c.Breaches() != 1 {
		t.Errorf("%d breaches, want 1", c.Breaches())
	}
}

func TestCheckerCatchesAMessageThatRunsTwice(t *testing.T) {
	list, slots := Stream(OneKey, 2)
	c := NewChecker(slots)
	handle(c, list, 0, 0)
	if c.Breaches() != 1 {
		t.Errorf("%d breaches, want 1", c.Breaches())
	}
}

func TestCheckerCatchesTwoOfAKeySideBySide(t *testing.T) {
	list, slots := Stream(OneKey, 2)
	c := NewChecker(slots)
	c.Begin(&list[0])
	c.Begin(&list[1])
	c.End(&list[0])
	c.End(&list[1])
	if c.Breaches() != 1 {
		t.Errorf("%d breaches, want 1", c.Breaches())
	}
}

func TestDoneLeavesOutKeys(t *testing.T) {
	list, slots := Stream(Unique, 10)
	c := NewChecker(slots)
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() { c.Note(&list[i]) })
	}
	wg.Wait()
	if c.Done() != 10 || c.Done(3) != 9 {
		t.Errorf("%d done, %d but one, want 10 and 9", c.Done(), c.Done(3))
	}
}
