package rpc

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	accessv1 "github.com/parleychat/parley/proto/gen/parley/access/v1"
)

// packagePrefix limits the table to our own protos.
const packagePrefix = "parley."

// Method is what the proto says about one RPC.
type Method struct {
	// Procedure is "/parley.user.v1.UserService/GetUser".
	Procedure string
	// Service is the domain that serves it: "user".
	Service         string
	Access          accessv1.Access
	InternalCallers []string
	Input           protoreflect.MessageDescriptor
	Output          protoreflect.MessageDescriptor
	Streaming       connect.StreamType
}

// Public says whether the method may be routed from outside.
func (m Method) Public() bool {
	return m.Access != accessv1.Access_ACCESS_UNSPECIFIED && m.Access != accessv1.Access_ACCESS_INTERNAL
}

var methodTable = sync.OnceValue(buildMethods)

// Methods is the table of all RPCs whose descriptors are linked into the
// program, by procedure. A method without an access option is not in it, and
// what is not in it is neither routed nor served. The map must not be changed.
func Methods() map[string]Method { return methodTable() }

func buildMethods() map[string]Method {
	table := make(map[string]Method)
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), packagePrefix) {
			return true
		}
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				if m := describe(methods.Get(j)); m.Access != accessv1.Access_ACCESS_UNSPECIFIED {
					table[m.Procedure] = m
				}
			}
		}
		return true
	})
	return table
}

func describe(md protoreflect.MethodDescriptor) Method {
	service := md.Parent()
	m := Method{
		Procedure: "/" + string(service.FullName()) + "/" + string(md.Name()),
		Input:     md.Input(),
		Output:    md.Output(),
	}
	// parley.<domain>.v1
	if parts := strings.Split(string(md.ParentFile().Package()), "."); len(parts) > 1 {
		m.Service = parts[1]
	}
	if md.IsStreamingClient() {
		m.Streaming |= connect.StreamTypeClient
	}
	if md.IsStreamingServer() {
		m.Streaming |= connect.StreamTypeServer
	}
	options, ok := md.Options().(*descriptorpb.MethodOptions)
	if !ok || options == nil {
		return m
	}
	if access, ok := proto.GetExtension(options, accessv1.E_Access).(accessv1.Access); ok {
		m.Access = access
	}
	if callers, ok := proto.GetExtension(options, accessv1.E_InternalCallers).([]string); ok {
		m.InternalCallers = slices.Clone(callers)
	}
	return m
}

// checkServed says whether everything below a path may be served: the path of a
// service ("/parley.user.v1.UserService/") or of one procedure.
func checkServed(path string) error {
	name, method, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return fmt.Errorf("serve %s: no such service is linked: %w", path, err)
	}
	service, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return fmt.Errorf("serve %s: not a service", path)
	}
	if method != "" && service.Methods().ByName(protoreflect.Name(method)) == nil {
		return fmt.Errorf("serve %s: no such method", path)
	}
	for i := range service.Methods().Len() {
		m := describe(service.Methods().Get(i))
		if _, ok := Methods()[m.Procedure]; !ok {
			return fmt.Errorf("serve %s: method %s has no access option", path, m.Procedure)
		}
	}
	return nil
}
