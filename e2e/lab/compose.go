package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Compose runs docker-compose for a project of a file of the machine, which is
// copied to the host: h.Compose(ctx, "examples/a.yml", "shop", "up", "-d").
func (h *Host) Compose(ctx context.Context, file, project string, args ...string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("run compose on %s: %w", h.Name, err)
	}
	copied := filepath.Join("/srv", project, filepath.Base(file))
	if err := h.WriteFile(copied, string(content), 0o644); err != nil {
		return "", err
	}
	return h.Exec(ctx, append([]string{"docker-compose", "-f", copied, "-p", project}, args...)...)
}
