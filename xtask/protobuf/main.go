// Prints what the API server has to know of Kubernetes' Go types to speak their protobuf encoding, and samples of that
// encoding made by Kubernetes' own serializers. Run through `cargo xtask protobuf`.
//
// The .proto files that Kubernetes publishes are not enough: they do not say which fields are pointers. On the wire a
// pointer to zero is a value, a plain zero is nothing at all, and only the Go types know which is which.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	certificates "k8s.io/api/certificates/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	events "k8s.io/api/events/v1"
	flowcontrol "k8s.io/api/flowcontrol/v1"
	networking "k8s.io/api/networking/v1"
	node "k8s.io/api/node/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	resource "k8s.io/api/resource/v1"
	scheduling "k8s.io/api/scheduling/v1"
	storage "k8s.io/api/storage/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Types whose JSON is not what their fields say.
var special = map[reflect.Type]string{
	reflect.TypeOf(meta.Time{}):                                  "Time",
	reflect.TypeOf(meta.MicroTime{}):                             "MicroTime",
	reflect.TypeOf(meta.Duration{}):                              "Duration",
	reflect.TypeOf(meta.FieldsV1{}):                              "Raw",
	reflect.TypeOf(runtime.RawExtension{}):                       "Raw",
	reflect.TypeOf(apiextensions.JSON{}):                         "Raw",
	reflect.TypeOf(quantity.Quantity{}):                          "Quantity",
	reflect.TypeOf(intstr.IntOrString{}):                         "IntOrString",
	reflect.TypeOf(authentication.ExtraValue{}):                  "Items",
	reflect.TypeOf(authorization.ExtraValue{}):                   "Items",
	reflect.TypeOf(certificates.ExtraValue{}):                    "Items",
	reflect.TypeOf(meta.Verbs{}):                                 "Items",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrArray{}):       "SchemaOrArray",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrBool{}):        "SchemaOrBool",
	reflect.TypeOf(apiextensions.JSONSchemaPropsOrStringArray{}): "SchemaOrStrings",
}

var ids = map[reflect.Type]int{}
var messages []string

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// What a field holds: a letter for a scalar, a name for a special type, a number for a message.
func typeOf(t reflect.Type) string {
	if name, ok := special[t]; ok {
		return name
	}
	switch t.Kind() {
	case reflect.String:
		return "s"
	case reflect.Bool:
		return "t"
	case reflect.Int32, reflect.Int64, reflect.Int:
		return "i"
	case reflect.Float64:
		return "d"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "b"
		}
	case reflect.Struct:
		return fmt.Sprint(message(t))
	}
	fail("no way to write %v", t)
	return ""
}

func message(t reflect.Type) int {
	if id, ok := ids[t]; ok {
		return id
	}
	id := len(messages)
	ids[t] = id
	messages = append(messages, "")
	var lines []string
	for i := 0; i < t.NumField(); i++ {
		field := t.Field(i)
		tag := field.Tag.Get("protobuf")
		if tag == "" {
			continue
		}
		number := strings.Split(tag, ",")[1]
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		flags := ""
		kind := field.Type
		if _, is := special[kind]; !is && kind.Kind() == reflect.Pointer {
			flags += "p"
			kind = kind.Elem()
		}
		if strings.Contains(options, "omitempty") {
			flags += "e"
		}
		if strings.Contains(options, "omitzero") {
			flags += "z"
		}
		if name == "" {
			if !field.Anonymous && !strings.Contains(options, "inline") {
				fail("%v.%s has no name", t, field.Name)
			}
			flags += "n"
			name = "-"
		}
		what := ""
		_, is := special[kind]
		switch {
		case !is && kind.Kind() == reflect.Map:
			if kind.Key().Kind() != reflect.String {
				fail("%v.%s is a map by something else than text", t, field.Name)
			}
			flags += "m"
			what = typeOf(kind.Elem())
		case !is && kind.Kind() == reflect.Slice && kind.Elem().Kind() != reflect.Uint8:
			flags += "r"
			elem := kind.Elem()
			if elem.Kind() == reflect.Pointer {
				elem = elem.Elem()
			}
			what = typeOf(elem)
		default:
			what = typeOf(kind)
		}
		if flags == "" {
			flags = "-"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %s", number, name, flags, what))
	}
	messages[id] = t.PkgPath()[strings.LastIndex(t.PkgPath()[:strings.LastIndex(t.PkgPath(), "/")], "/")+1:] + "." + t.Name() + ": " + strings.Join(lines, ", ")
	return id
}

// Sets about half of the fields, every type somewhere.
func fill(r *rand.Rand, v reflect.Value, depth int) {
	t := v.Type()
	switch x := v.Addr().Interface().(type) {
	case *meta.Time:
		if r.Intn(3) > 0 {
			x.Time = time.Unix(r.Int63n(4e9), 0).UTC()
		}
		return
	case *meta.MicroTime:
		x.Time = time.Unix(r.Int63n(4e9), r.Int63n(1e6)*1000).UTC()
		return
	case *meta.Duration:
		x.Duration = time.Duration(r.Int63n(1e15))
		return
	case *meta.FieldsV1:
		x.Raw = []byte(`{"f:spec":{".":{}}}`)
		return
	case *runtime.RawExtension:
		x.Raw = []byte(`{"apiVersion":"g/v1","kind":"K"}`)
		return
	case *apiextensions.JSON:
		x.Raw = []byte(`[1,"a",{"b":null}]`)
		return
	case *quantity.Quantity:
		*x = quantity.MustParse([]string{"0", "100m", "1Gi", "1500"}[r.Intn(4)])
		x.String()
		return
	case *intstr.IntOrString:
		*x = []intstr.IntOrString{intstr.FromInt32(0), intstr.FromInt32(8080), intstr.FromString("50%"), intstr.FromString("")}[r.Intn(4)]
		return
	case *apiextensions.JSONSchemaPropsOrArray:
		if r.Intn(2) == 0 {
			x.Schema = &apiextensions.JSONSchemaProps{Type: "string"}
		} else {
			x.JSONSchemas = []apiextensions.JSONSchemaProps{{Type: "integer"}, {}}
		}
		return
	case *apiextensions.JSONSchemaPropsOrBool:
		if r.Intn(2) == 0 {
			x.Allows, x.Schema = true, &apiextensions.JSONSchemaProps{Type: "string"}
		} else {
			x.Allows = r.Intn(2) == 0
		}
		return
	case *apiextensions.JSONSchemaPropsOrStringArray:
		if r.Intn(2) == 0 {
			x.Schema = &apiextensions.JSONSchemaProps{Type: "string"}
		} else {
			x.Property = []string{"a", "b"}
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString([]string{"", "a", "läng\"er\n", "x-y.z/w"}[r.Intn(4)])
	case reflect.Bool:
		v.SetBool(r.Intn(2) == 0)
	case reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt([]int64{0, 1, -1, 1 << 30, -300}[r.Intn(5)])
	case reflect.Float64:
		v.SetFloat([]float64{0, 1.5, -2.25}[r.Intn(3)])
	case reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		fill(r, v.Elem(), depth)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{0, 1, 2, 255}[:1+r.Intn(4)])
			return
		}
		n := 1 + r.Intn(2)
		v.Set(reflect.MakeSlice(t, n, n))
		for i := 0; i < n; i++ {
			fill(r, v.Index(i), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		for i := 0; i <= r.Intn(2); i++ {
			value := reflect.New(t.Elem()).Elem()
			fill(r, value, depth+1)
			v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("k%d", i)).Convert(t.Key()), value)
		}
	case reflect.Struct:
		for i := 0; i < t.NumField(); i++ {
			field := t.Field(i)
			if field.Tag.Get("protobuf") == "" {
				continue
			}
			nested := field.Type.Kind() != reflect.String
			odds := 2
			if nested {
				odds = 2 + depth
			}
			name := field.Tag.Get("json")
			must := depth == 0 && !strings.HasPrefix(name, "status")
			if depth < 7 && (must || r.Intn(odds) == 0) {
				fill(r, v.Field(i), depth+1)
			}
		}
	}
}

// Without nulls: the server reads a null and a missing field alike.
func bare(value any) any {
	switch x := value.(type) {
	case map[string]any:
		for key, inner := range x {
			if inner == nil {
				delete(x, key)
			} else {
				x[key] = bare(inner)
			}
		}
	case []any:
		for i := range x {
			x[i] = bare(x[i])
		}
	}
	return value
}

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		admissionregistration.AddToScheme, apps.AddToScheme, authentication.AddToScheme, authorization.AddToScheme,
		autoscalingv1.AddToScheme, autoscaling.AddToScheme, batch.AddToScheme, certificates.AddToScheme,
		coordination.AddToScheme, core.AddToScheme, discovery.AddToScheme, events.AddToScheme, flowcontrol.AddToScheme,
		networking.AddToScheme, node.AddToScheme, policy.AddToScheme, rbac.AddToScheme, resource.AddToScheme,
		scheduling.AddToScheme, storage.AddToScheme, apiextensions.AddToScheme, apiregistration.AddToScheme,
		metrics.AddToScheme, meta.AddMetaToScheme,
	} {
		if err := add(scheme); err != nil {
			fail("%v", err)
		}
	}
	kinds := map[string]int{}
	objects := map[string]schema.GroupVersionKind{}
	for gvk, t := range scheme.AllKnownTypes() {
		if gvk.Version == runtime.APIVersionInternal || t.PkgPath() == "" {
			continue
		}
		key := gvk.GroupVersion().String() + " " + gvk.Kind
		// A table has no protobuf form.
		if strings.HasPrefix(gvk.Kind, "Table") {
			continue
		}
		// Options, statuses and watch events are the same in every group.
		if strings.HasSuffix(t.PkgPath(), "apis/meta/v1") {
			key = "* " + gvk.Kind
		}
		kinds[key] = 0
		// A map has another order in every run.
		if before, ok := objects[key]; !ok || gvk.String() < before.String() {
			objects[key] = gvk
		}
	}
	// In no scheme under their own names.
	extra := map[string]reflect.Type{
		"* APIGroup": reflect.TypeOf(meta.APIGroup{}), "* APIGroupList": reflect.TypeOf(meta.APIGroupList{}),
		"* APIResourceList": reflect.TypeOf(meta.APIResourceList{}), "* APIVersions": reflect.TypeOf(meta.APIVersions{}),
		"* Status": reflect.TypeOf(meta.Status{}),
	}
	keys := []string{}
	for key := range extra {
		kinds[key] = 0
	}
	for key := range kinds {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if t, ok := extra[key]; ok {
			kinds[key] = message(t)
		} else {
			kinds[key] = message(scheme.AllKnownTypes()[objects[key]])
		}
	}
	var table, samples bytes.Buffer
	table.WriteString("# The shape of Kubernetes' types in protobuf, written by `cargo xtask protobuf` from the Go modules k8s.io/api,\n" +
		"# k8s.io/apimachinery, k8s.io/apiextensions-apiserver, k8s.io/kube-aggregator and k8s.io/metrics v0.35.0\n" +
		"# (Copyright The Kubernetes Authors, Apache-2.0). First the kinds with the number of their type, then the types.\n" +
		"# A field: number, name in JSON, flags (p pointer, e omitempty, z omitzero, r repeated, m map, n inlined), type.\n")
	for _, key := range keys {
		fmt.Fprintf(&table, "%s %d\n", key, kinds[key])
	}
	table.WriteString("\n")
	for _, line := range messages {
		table.WriteString(line + "\n")
	}
	// An object in protobuf, and the JSON that encoding/json makes of it.
	rounds := 1
	if len(os.Args) > 3 {
		fmt.Sscan(os.Args[3], &rounds)
	}
	encoder := protobuf.NewSerializer(scheme, scheme)
	for i := 0; i < len(keys)*rounds; i++ {
		key := keys[i%len(keys)]
		gvk, ok := objects[key]
		if !ok || strings.HasPrefix(key, "* ") && !strings.Contains("* DeleteOptions * Status * PartialObjectMetadata", key) || strings.HasSuffix(key, "List") {
			continue
		}
		r := rand.New(rand.NewSource(int64(i)))
		object, err := scheme.New(gvk)
		if err != nil {
			fail("%v", err)
		}
		object.GetObjectKind().SetGroupVersionKind(gvk)
		fill(r, reflect.ValueOf(object).Elem(), 0)
		object.GetObjectKind().SetGroupVersionKind(gvk)
		var wire bytes.Buffer
		if err := encoder.Encode(object, &wire); err != nil {
			fail("%s: %v", key, err)
		}
		text, err := json.Marshal(object)
		if err != nil {
			fail("%s: %v", key, err)
		}
		var value any
		if err := json.Unmarshal(text, &value); err != nil {
			fail("%s: %v", key, err)
		}
		text, _ = json.Marshal(bare(value))
		fmt.Fprintf(&samples, "%s %s\n", base64.StdEncoding.EncodeToString(wire.Bytes()), text)
	}
	if err := os.WriteFile(os.Args[1], table.Bytes(), 0o644); err != nil {
		fail("%v", err)
	}
	if err := os.WriteFile(os.Args[2], samples.Bytes(), 0o644); err != nil {
		fail("%v", err)
	}
}
