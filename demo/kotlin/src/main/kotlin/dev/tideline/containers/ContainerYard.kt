/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.containers

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Refused
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Tonnes
import dev.tideline.core.change
import dev.tideline.core.done
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.refuse
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a container by the code painted on its doors. */
@JvmInline
value class ContainerId(val raw: String) {
    override fun toString(): String = raw
}

/** Identifies a stack of containers by block, row and slot. */
@JvmInline
value class StackId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes a container that waits in the yard. */
data class Container(
    val id: ContainerId,
    val weight: Tonnes,
    val leavesAt: Moment,
    val chilled: Boolean = false,
)

/** Describes a stack, with its containers listed from the ground up. */
data class Stack(
    val id: StackId,
    val powered: Boolean,
    val tiers: Int,
    val containers: List<Container> = emptyList(),
) {
    val isFull: Boolean get() = containers.size >= tiers

    /** Counts the containers that would have to be dug out from under the new one. */
    fun countBlockedBy(container: Container): Int = containers.count { it.leavesAt < container.leavesAt }
}

/** Tells that a container was put onto a stack. */
data class ContainerStacked(
    val container: ContainerId,
    val stack: StackId,
    override val at: Moment,
) : TideEvent

/** Tells that a container left the yard, and how many others had to be lifted for it. */
data class ContainerFetched(
    val container: ContainerId,
    val reshuffles: Int,
    override val at: Moment,
) : TideEvent

/** Keeps the stacks of the yard. */
interface StackStore : Store<StackId, Stack> {
    /** Finds the stack in which a container stands. */
    fun findHolding(container: ContainerId): Outcome<Stack>
}

/** Keeps the stacks in memory. */
class InMemoryStackStore : InMemoryStore<StackId, Stack>("stack", Stack::id), StackStore {
    override fun findHolding(container: ContainerId): Outcome<Stack> =
        requireFound(listAll().firstOrNull { stack -> stack.containers.any { it.id == container } }) {
            "container $container is not in the yard"
        }
}

/** Stacks containers so that few of them have to be moved twice. */
class ContainerYard(
    private val stacks: StackStore,
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<ContainerYard>()

    /** Puts a container onto the stack where it stands in the way of the fewest others. */
    fun stack(container: Container): Outcome<Stack> =
        requireThat(stacks.findHolding(container.id) is Refused, Reason.DUPLICATE) {
            "container ${container.id} is already in the yard"
        }
            .then { findBestStack(container) }
            .then { best -> stacks.change(best.id) { it.copy(containers = it.containers + container) } }
            .onDone {
                log.note("container.stacked", "container" to container.id, "stack" to it.id)
                events.publish(
                    ContainerStacked(container = container.id, stack = it.id, at = clock.now()),
                )
            }

    /** Fetches a container and hands back how many others had to be lifted off it. */
    fun fetch(id: ContainerId): Outcome<Int> =
        stacks.findHolding(id)
            .then { stack ->
                val reshuffles = stack.containers.size - 1 - stack.containers.indexOfFirst { it.id == id }
                val rest = stack.containers.filter { it.id != id }
                stacks.change(stack.id) { it.copy(containers = rest) }
                    .into { reshuffles }
            }
            .onDone { reshuffles ->
                log.note("container.fetched", "container" to id, "reshuffles" to reshuffles)
                events.publish(ContainerFetched(container = id, reshuffles = reshuffles, at = clock.now()))
            }

    private fun findBestStack(container: Container): Outcome<Stack> {
        val open = stacks.listWhere { !it.isFull && (it.powered || !container.chilled) }
        val best = open.minWithOrNull(
            compareBy<Stack>(
                { it.countBlockedBy(container) },
                { if (it.powered && !container.chilled) 1 else 0 },
                { it.containers.size },
            ),
        )
        return best?.let { done(it) } ?: refuse(Reason.FULL) { "no stack is left for ${container.id}" }
    }
}
