// Package testkit has what the tests of flow share: handlers whose calls end when the test says so, streams that run in the
// background, and checks. Their messages are strings, named by the test.
//
//	s := testkit.NewManualHandler()
//	c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{Ordering: testkit.Keyed}), "a1", "a2", "b1")
//	s.WantRunning(t, "a1 b1")
//	s.Finish(t, "a1")
//	s.WantRunning(t, "a2 b1")
//
// Tests of package flow itself, those that see inside, can't import it.
package testkit
