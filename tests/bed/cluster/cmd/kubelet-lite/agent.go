package main

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// workers bounds the pods looked after at the same time; stopping one may
// take its whole grace period.
const workers = 8

// restartDelay is the pause before a container that should run is started
// again. The real kubelet backs off from 10 s, which no test wants to wait for.
const restartDelay = time.Second

// Agent keeps the pods of its node as the API server wants them: it registers
// the Node, binds pods that have none, starts, restarts and stops containers,
// and reports their status.
type Agent struct {
	client   kubernetes.Interface
	nodeName string
	address  string
	port     int32
	runtime  *Runtime

	lister corelisters.PodLister
	queue  workqueue.TypedRateLimitingInterface[string]

	mu       sync.Mutex
	restarts map[types.UID]map[string]int32 // by container
}

func (a *Agent) Run(ctx context.Context) error {
	a.restarts = map[types.UID]map[string]int32{}
	if err := a.register(ctx); err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	a.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, 2*time.Second))
	factory := informers.NewSharedInformerFactory(a.client, 0)
	informer := factory.Core().V1().Pods()
	a.lister = informer.Lister()
	enqueue := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			a.queue.Add(key)
		}
	}
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, obj any) { enqueue(obj) },
		DeleteFunc: func(obj any) {
			// Deleted with no grace: nobody will ask for it to be stopped.
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if pod, ok := obj.(*v1.Pod); ok && pod.Spec.NodeName == a.nodeName {
				go a.runtime.Forget(pod, 0)
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	var running sync.WaitGroup
	for range workers {
		running.Go(func() { a.work(ctx) })
	}
	<-ctx.Done()
	a.queue.ShutDown()
	return nil
}

func (a *Agent) register(ctx context.Context) error {
	node := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:   a.nodeName,
			Labels: map[string]string{"kubernetes.io/hostname": a.nodeName, "kubernetes.io/os": "linux"},
		},
	}
	made, err := a.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		made, err = a.client.CoreV1().Nodes().Get(ctx, a.nodeName, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	// Admission taints a new node until the node controller, which does not
	// run here, finds it ready.
	made.Spec.Taints = nil
	if made, err = a.client.CoreV1().Nodes().Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		return err
	}
	now := metav1.Now()
	made.Status = v1.NodeStatus{
		Capacity:    v1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("16Gi"), "pods": resource.MustParse("1000")},
		Allocatable: v1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("16Gi"), "pods": resource.MustParse("1000")},
		Conditions: []v1.NodeCondition{{
			Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}},
		Addresses: []v1.NodeAddress{
			{Type: v1.NodeInternalIP, Address: a.address},
			{Type: v1.NodeHostName, Address: a.nodeName},
		},
		DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: a.port}},
		NodeInfo:        v1.NodeSystemInfo{KubeletVersion: "v1.36.3", OperatingSystem: "linux", ContainerRuntimeVersion: "processes://1"},
	}
	_, err = a.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}

func (a *Agent) work(ctx context.Context) {
	for {
		key, quit := a.queue.Get()
		if quit {
			return
		}
		if err := a.sync(ctx, key); err != nil {
			klog.V(2).InfoS("Will try again", "pod", key, "err", err)
			a.queue.AddRateLimited(key)
		} else {
			a.queue.Forget(key)
		}
		a.queue.Done(key)
	}
}

// sync takes one pod a step closer to what its spec says.
func (a *Agent) sync(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	pod, err := a.lister.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case pod.DeletionTimestamp != nil:
		if pod.Spec.NodeName != a.nodeName {
			return nil
		}
		grace := time.Duration(0)
		if s := pod.DeletionGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		a.runtime.Forget(pod, grace)
		err := a.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64),
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	case pod.Spec.NodeName == "":
		return a.bind(ctx, pod)
	case pod.Spec.NodeName != a.nodeName, pod.Status.Phase == v1.PodSucceeded, pod.Status.Phase == v1.PodFailed:
		return nil
	}
	if err := a.startContainers(pod, key); err != nil {
		return err
	}
	return a.report(ctx, pod)
}

func (a *Agent) bind(ctx context.Context, pod *v1.Pod) error {
	err := a.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     v1.ObjectReference{Kind: "Node", Name: a.nodeName},
	}, metav1.CreateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (a *Agent) startContainers(pod *v1.Pod, key string) error {
	for _, spec := range containersOf(pod) {
		last := a.runtime.Get(pod.Namespace, pod.Name, spec.Name)
		if last != nil {
			if last.Running() || !a.restartable(pod, spec, last) {
				continue
			}
			if wait := restartDelay - time.Since(last.finished); wait > 0 {
				a.queue.AddAfter(key, wait)
				continue
			}
			a.mu.Lock()
			if a.restarts[pod.UID] == nil {
				a.restarts[pod.UID] = map[string]int32{}
			}
			a.restarts[pod.UID][spec.Name]++
			a.mu.Unlock()
		}
		container, err := a.runtime.Start(pod, spec)
		if err != nil {
			return err
		}
		go func() {
			<-container.done
			a.queue.Add(key) // report it, and start it again if it should run
		}()
	}
	return nil
}

func (a *Agent) restartable(pod *v1.Pod, spec v1.Container, last *Container) bool {
	for _, e := range pod.Spec.EphemeralContainers {
		if e.Name == spec.Name {
			return false
		}
	}
	switch pod.Spec.RestartPolicy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return last.exitCode != 0
	}
	return true
}

// containersOf lists the containers of a pod, its ephemeral ones too.
func containersOf(pod *v1.Pod) []v1.Container {
	specs := append([]v1.Container{}, pod.Spec.Containers...)
	for _, e := range pod.Spec.EphemeralContainers {
		specs = append(specs, v1.Container(e.EphemeralContainerCommon))
	}
	return specs
}

// report writes the pod's status where it has changed.
func (a *Agent) report(ctx context.Context, pod *v1.Pod) error {
	status := *pod.Status.DeepCopy()
	status.HostIP = a.address
	status.HostIPs = []v1.HostIP{{IP: a.address}}
	status.PodIP = a.address
	status.PodIPs = []v1.PodIP{{IP: a.address}}
	if status.StartTime == nil {
		status.StartTime = new(metav1.NewTime(time.Now().Truncate(time.Second)))
	}
	status.ContainerStatuses = nil
	ready, over, failed := true, true, false
	for _, spec := range pod.Spec.Containers {
		s := a.containerStatus(pod, spec)
		status.ContainerStatuses = append(status.ContainerStatuses, s)
		ready = ready && s.Ready
		t := s.State.Terminated
		last := a.runtime.Get(pod.Namespace, pod.Name, spec.Name)
		over = over && t != nil && last != nil && !a.restartable(pod, spec, last)
		failed = failed || t != nil && t.ExitCode != 0
	}
	status.EphemeralContainerStatuses = nil
	for _, e := range pod.Spec.EphemeralContainers {
		status.EphemeralContainerStatuses = append(status.EphemeralContainerStatuses, a.containerStatus(pod, v1.Container(e.EphemeralContainerCommon)))
	}
	switch {
	case over && failed:
		status.Phase = v1.PodFailed
	case over:
		status.Phase = v1.PodSucceeded
	default:
		status.Phase = v1.PodRunning
	}
	setCondition(&status, v1.PodInitialized, true)
	setCondition(&status, v1.ContainersReady, ready)
	setCondition(&status, v1.PodReady, ready)
	if reflect.DeepEqual(status, pod.Status) {
		return nil
	}
	updated := pod.DeepCopy()
	updated.Status = status
	_, err := a.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (a *Agent) containerStatus(pod *v1.Pod, spec v1.Container) v1.ContainerStatus {
	a.mu.Lock()
	restarts := a.restarts[pod.UID][spec.Name]
	a.mu.Unlock()
	s := v1.ContainerStatus{
		Name: spec.Name, Image: spec.Image, ImageID: "processes://" + spec.Image, RestartCount: restarts,
		ContainerID: fmt.Sprintf("processes://%s-%s-%d", pod.UID, spec.Name, restarts),
	}
	c := a.runtime.Get(pod.Namespace, pod.Name, spec.Name)
	switch {
	case c == nil:
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	case c.Running():
		s.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(c.Started.Truncate(time.Second))}
		s.Ready = true
	default:
		reason := "Completed"
		if c.exitCode != 0 {
			reason = "Error"
		}
		s.State.Terminated = &v1.ContainerStateTerminated{
			ExitCode: int32(c.exitCode), Reason: reason, ContainerID: s.ContainerID,
			StartedAt: metav1.NewTime(c.Started.Truncate(time.Second)), FinishedAt: metav1.NewTime(c.finished.Truncate(time.Second)),
		}
	}
	s.Started = &s.Ready
	return s
}

func setCondition(status *v1.PodStatus, kind v1.PodConditionType, ok bool) {
	value := v1.ConditionFalse
	if ok {
		value = v1.ConditionTrue
	}
	for i := range status.Conditions {
		if c := &status.Conditions[i]; c.Type == kind {
			if c.Status != value {
				c.Status, c.LastTransitionTime = value, metav1.NewTime(time.Now().Truncate(time.Second))
			}
			return
		}
	}
	status.Conditions = append(status.Conditions, v1.PodCondition{
		Type: kind, Status: value, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
	})
}
