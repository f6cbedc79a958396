// Package manifests_test checks what is deployed: the Kubernetes manifests, the
// images' Dockerfiles, the Tiltfile and the permissions of NATS. No cluster and no
// container engine is needed; what the programs themselves know (their settings,
// what they say on NATS) is asked of them by testdata/probe.
package manifests_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/parleychat/parley/tools/manifests/secrets"
	"github.com/parleychat/parley/tools/manifests/tree"
)

const root = "../.."

// sealedSecret is the custom resource of the sealed secrets controller, as far as
// we use it. Its values are encrypted for one cluster.
type sealedSecret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		EncryptedData map[string]string `json:"encryptedData"`
		Template      struct {
			metav1.ObjectMeta `json:"metadata"`
		} `json:"template"`
	} `json:"spec"`
}

// overlay is everything that one `kubectl apply -k` would send.
type overlay struct {
	objects []runtime.Object
	sealed  []sealedSecret
	// texts are the documents before decoding.
	texts []string
}

// built builds the overlays once, from a copy with secrets made for it.
var built = sync.OnceValues(func() (map[string]overlay, error) {
	dir, err := os.MkdirTemp("", "manifests")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "deploy"))); err != nil {
		return nil, fmt.Errorf("copy the manifests: %w", err)
	}
	domains, err := tree.Domains(root)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(dir, "k8s/overlays/dev/secrets")
	if err := os.RemoveAll(own); err != nil { // the developer's
		return nil, fmt.Errorf("remove secrets: %w", err)
	}
	if err := secrets.Write(own, domains); err != nil {
		return nil, err
	}
	overlays := map[string]overlay{}
	for _, name := range []string{"dev", "production"} {
		if overlays[name], err = build(filepath.Join(dir, "k8s/overlays", name)); err != nil {
			return nil, fmt.Errorf("overlay %s: %w", name, err)
		}
	}
	return overlays, nil
})

func build(dir string) (overlay, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return overlay{}, fmt.Errorf("kustomize: %w", err)
	}
	// Only the groups that are used: all of them take a minute more to compile.
	scheme := runtime.NewScheme()
	groups := runtime.NewSchemeBuilder(appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme,
		corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme)
	if err := groups.AddToScheme(scheme); err != nil {
		return overlay{}, fmt.Errorf("register the kinds: %w", err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var o overlay
	for _, resource := range resources.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			return overlay{}, fmt.Errorf("print %s: %w", resource.CurId(), err)
		}
		o.texts = append(o.texts, string(text))
		if resource.GetKind() == "SealedSecret" {
			var s sealedSecret
			if err := yaml.UnmarshalStrict(text, &s); err != nil {
				return overlay{}, fmt.Errorf("%s: %w", resource.CurId(), err)
			}
			o.sealed = append(o.sealed, s)
			continue
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return overlay{}, fmt.Errorf("%s: %w", resource.CurId(), err)
		}
		o.objects = append(o.objects, object)
	}
	return o, nil
}

// overlays returns all that is built, or fails the test with what the strict
// decoder says: an unknown field, a wrong type, a field that is there twice.
func overlays(t *testing.T) map[string]overlay {
	t.Helper()
	all, err := built()
	require.NoError(t, err)
	return all
}

func domains(t *testing.T) []string {
	t.Helper()
	names, err := tree.Domains(root)
	require.NoError(t, err)
	return names
}

// find returns the object of type T with that name (a generated name without its
// hash), or fails the test.
func find[T metav1.Object](t *testing.T, o overlay, name string) T {
	t.Helper()
	for _, object := range o.objects {
		found, ok := object.(T)
		if ok && (found.GetName() == name || generated(found.GetName(), name)) {
			return found
		}
	}
	var zero T
	require.FailNow(t, "a manifest is missing", "%T %s", zero, name)
	return zero
}

// generated tells a name that kustomize has given: "auth-47dt8h9cc8".
func generated(name, base string) bool {
	hash, ok := strings.CutPrefix(name, base+"-")
	return ok && len(hash) == 10 && !strings.Contains(hash, "-")
}

func all[T any](o overlay) []T {
	var found []T
	for _, object := range o.objects {
		if v, ok := object.(T); ok {
			found = append(found, v)
		}
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(text)
}
