package main

import (
	"encoding/json"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// pluginConfig is config.json, as moby reads it (api/types/plugin.go).
type pluginConfig struct {
	Description     string
	Documentation   string
	Entrypoint      []string
	WorkDir         string
	Interface       struct{ Types, Socket any }
	Network         struct{ Type string }
	PropagatedMount string
	Linux           struct{ Capabilities []string }
	Env             []struct {
		Name, Description, Value string
		Settable                 []string
	}
	Mounts []pluginMount
}

type pluginMount struct {
	Name, Description, Source, Destination, Type string
	Settable, Options                            []string
}

func readManifest(t *testing.T) pluginConfig {
	t.Helper()
	b, err := os.ReadFile("config.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	var c pluginConfig
	if err := d.Decode(&c); err != nil {
		t.Fatalf("read config.json: %v", err)
	}
	return c
}

func TestManifestSettings(t *testing.T) {
	c := readManifest(t)
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
		if !slices.Equal(e.Settable, []string{"value"}) || e.Description == "" {
			t.Errorf("env %s: want a description, and value settable", e.Name)
		}
	}
	mounts := map[string]pluginMount{}
	for _, m := range c.Mounts {
		mounts[m.Name] = m
	}
	settings := reflect.TypeFor[Settings]()
	for i := range settings.NumField() {
		tag := settings.Field(i).Tag
		if name, ok := tag.Lookup("env"); ok {
			value, ok := env[name]
			if !ok || value != tag.Get("default") {
				t.Errorf("setting %s: config.json has %q (%t), the default is %q", name, value, ok, tag.Get("default"))
			}
			delete(env, name)
		}
		if name, ok := tag.Lookup("mount"); ok {
			m, ok := mounts[name]
			if !ok || m.Destination != tag.Get("default") || m.Source != "/dev/null" {
				t.Errorf("mount %s: config.json has %+v, want /dev/null on %s", name, m, tag.Get("default"))
			}
		}
		if settings.Field(i).Name == "State" && c.PropagatedMount != tag.Get("default") {
			t.Errorf("propagatedMount is %q, state is in %q", c.PropagatedMount, tag.Get("default"))
		}
	}
	for name := range env {
		t.Errorf("config.json has env %s, and no setting has it", name)
	}
}

func TestManifestMounts(t *testing.T) {
	c := readManifest(t)
	byName := map[string]pluginMount{}
	for _, m := range c.Mounts {
		byName[m.Name] = m
		if m.Type != "bind" || m.Description == "" || !slices.Equal(m.Settable, []string{"source"}) {
			t.Errorf("mount %s: want a bind with a description and a settable source", m.Name)
		}
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			t.Errorf("mount %s: options %v do not bind", m.Name, m.Options)
		}
		// A missing source makes enabling fail, on each host that lacks it.
		if !slices.Contains([]string{"/dev/null", "/var/run/docker", "/lib", "/proc", "/etc"}, m.Source) {
			t.Errorf("mount %s: source %s does not exist on every host", m.Name, m.Source)
		}
		for _, own := range []string{path.Dir(defaultPluginSocket), "/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf", c.PropagatedMount} {
			if within := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }; within(own, m.Destination) || within(m.Destination, own) {
				t.Errorf("mount %s: destination %s and Docker's own mount %s shadow each other", m.Name, m.Destination, own)
			}
		}
		for _, other := range c.Mounts {
			if other.Name != m.Name && strings.HasPrefix(other.Destination+"/", m.Destination+"/") {
				t.Errorf("mounts %s and %s shadow each other", m.Name, other.Name)
			}
		}
	}
	if s := byName["sandboxes"]; s.Source != "/var/run/docker" || s.Destination != s.Source || !slices.Contains(s.Options, "rbind") || !slices.Contains(s.Options, "rslave") {
		t.Errorf("sandboxes: %+v; want /var/run/docker on itself, rbind and rslave: namespaces appear there later", s)
	}
	if p := byName["proc"]; p.Destination != "/host/proc" || slices.Contains(p.Options, "ro") {
		t.Errorf("proc: %+v; want the host's /proc at /host/proc, to be written", p)
	}
	for _, name := range []string{"key", "etc", "modules"} {
		if !slices.Contains(byName[name].Options, "ro") {
			t.Errorf("mount %s: want it read-only", name)
		}
	}
}

func TestManifestRest(t *testing.T) {
	c := readManifest(t)
	if !slices.Equal(c.Entrypoint, []string{"/isthmus", "serve"}) || c.Network.Type != "host" {
		t.Errorf("entrypoint %v, network %q", c.Entrypoint, c.Network.Type)
	}
	got, _ := json.Marshal(c.Interface)
	if want := `{"Types":["docker.networkdriver/1.0","docker.ipamdriver/1.0"],"Socket":"isthmus.sock"}`; string(got) != want {
		t.Errorf("interface %s, want %s", got, want)
	}
	if path.Base(defaultPluginSocket) != c.Interface.Socket {
		t.Errorf("the plugin listens on %s", defaultPluginSocket)
	}
	want := []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_MODULE"}
	if !slices.Equal(c.Linux.Capabilities, want) {
		t.Errorf("capabilities %v, want %v: a change makes every user approve anew", c.Linux.Capabilities, want)
	}
}
