// Package proof holds the checks of flow that need more than flow's own tests may: a linearizability checker.
// Its script mutants tries the other tests: it breaks the library on purpose and sees that they notice.
package proof
