package transport

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestResolveLiterals(t *testing.T) {
	t.Parallel()
	got, err := Resolve(t.Context(), []string{
		" 10.0.0.1 ", "10.0.0.1:7950", "10.0.0.2:99", "::1", "[::1]", "[::1]:99", "fe80::1%eth0", "[fe80::1%eth0]:99", "::ffff:10.0.0.3", "",
	}, 7950)
	want := []string{
		"10.0.0.1:7950", "10.0.0.2:99", "[::1]:7950", "[::1]:99", "[fe80::1%eth0]:7950", "[fe80::1%eth0]:99", "10.0.0.3:7950",
	}
	var text []string
	for _, a := range got {
		text = append(text, a.String())
	}
	if err != nil || !slices.Equal(text, want) {
		t.Errorf("Resolve = %v, %v", text, err)
	}
	if got, err := Resolve(t.Context(), nil, 7950); got != nil || err != nil {
		t.Errorf("Resolve of nothing = %v, %v", got, err)
	}
}

func TestResolveNames(t *testing.T) {
	t.Parallel()
	got, err := Resolve(t.Context(), []string{"localhost:99"}, 7950)
	if err != nil || !slices.Contains(got, netip.MustParseAddrPort("127.0.0.1:99")) {
		t.Errorf("Resolve = %v, %v", got, err)
	}
}

func TestResolveNamesWhatFails(t *testing.T) {
	t.Parallel()
	bad := []string{"host.invalid", "10.0.0.1:0", "10.0.0.1:http", "10.0.0.1:70000", ":7950", "[::1", "[::1]x", "[host]:1", "1:2:3", "a b:c:d"}
	got, err := Resolve(within(t, 5*time.Second), append(bad, "10.0.0.9"), 7950)
	if len(got) != 1 || got[0] != netip.MustParseAddrPort("10.0.0.9:7950") {
		t.Errorf("the good entry gave %v", got)
	}
	if err == nil {
		t.Fatal("no error")
	}
	for _, entry := range bad {
		wantText(t, "error", err.Error(), `resolve "`+entry+`": `)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := Resolve(ctx, []string{"host.invalid", "::1"}, 7950); err == nil || len(got) != 1 {
		t.Errorf("with an ended context: %v, %v", got, err)
	}
}
