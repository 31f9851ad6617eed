//go:build kernel

package kernel_test

import (
	"context"
	"flag"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

// alike drops what the two kernels may differ in: MACs that nobody chose,
// and the other ends of veth pairs.
func alike(s kernel.State) kernel.State {
	out := maps.Clone(s)
	for k, o := range out {
		if l, ok := o.(kernel.Link); ok {
			l.Peer = ""
			if l.Kind == kernel.Veth || l.Kind == kernel.VLAN || l.Kind == kernel.Dummy {
				l.MAC = kernel.Link{}.MAC
			}
			out[k] = l
		}
	}
	return out
}

// fewer sets the number of cases that rapid tries in this test.
func fewer(t *testing.T, checks string) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	before := f.Value.String()
	if err := flag.Set(f.Name, checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(f.Name, before) })
}

// The fake behaves as Linux does: the same operations and accidents leave the
// same state in both.
func TestLinuxAgreesWithFake(t *testing.T) {
	t.Parallel()
	agree(t, plan)
}

// The same without tunnels and guards, which not every kernel can that can the rest.
func TestLinuxAgreesWithFakeOnParents(t *testing.T) {
	t.Parallel()
	agree(t, parents)
}

func agree(t *testing.T, plan func(*rapid.T, string, []kernel.Kind) kernel.State) {
	s := newSpace(t)
	s.parent()
	k := s.open()
	ctx := context.Background()
	able := slices.DeleteFunc(slices.Clone(everything), func(kind kernel.Kind) bool { return !makes(t, k, kind) })
	fewer(t, "30") // removing links for real takes its time
	rapid.Check(t, func(t *rapid.T) {
		f := kerneltest.New()
		agree := func(after string) kernel.State {
			real, err := k.Dump(ctx)
			if err != nil {
				t.Fatal(err)
			}
			fake, _ := f.Dump(ctx)
			if got, want := render(alike(real)), render(alike(fake)); got != want {
				t.Fatalf("after %s: Linux has\n%sthe fake has\n%s", after, got, want)
			}
			return fake
		}
		do := func(ops []kernel.Op) {
			real, fake := k.Do(ctx, ops), f.Do(ctx, ops)
			if (real == nil) != (fake == nil) {
				t.Fatalf("Linux: %v\nfake: %v\nby\n%s", real, fake, text(ops))
			}
			agree(text(ops))
		}
		have, err := k.Dump(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Do(ctx, kernel.Diff(have, nil, kernel.Options{})); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(t, "plans") {
			want := plan(t, "want", able)
			do(kernel.Diff(agree("the start"), want, kernel.Options{}))
			keys := slices.SortedFunc(maps.Keys(want), kernel.CompareKeys)
			for _, key := range keys {
				l, ok := want[key].(kernel.Link)
				if !ok || l.Standing != kernel.HandedOver {
					continue
				}
				host, _ := want[kernel.Link{Name: l.Peer}.Key()].(kernel.Link)
				h := kernel.Handover{Link: l, Host: host}
				if err := k.Hand(ctx, h); err != nil {
					t.Fatalf("%v", err)
				}
				if err := f.Hand(ctx, h); err != nil {
					t.Fatal(err)
				}
				agree("hand " + l.Name)
			}
			for range rapid.IntRange(0, 4).Draw(t, "accidents") {
				if len(keys) == 0 {
					break
				}
				key := rapid.SampledFrom(keys).Draw(t, "victim")
				if o, ok := want[key].(kernel.Link); ok && rapid.Bool().Draw(t, "down") {
					if _, err := s.try("ip link set " + o.Name + " down 2>/dev/null || true"); err != nil {
						t.Fatal(err)
					}
					f.SetDown(o.Name)
					agree("down " + o.Name)
					continue
				}
				do([]kernel.Op{{Action: kernel.Remove, Object: want[key]}})
			}
		}
	})
}
