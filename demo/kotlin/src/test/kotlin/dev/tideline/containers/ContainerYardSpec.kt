/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.containers

import dev.tideline.core.Events
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.Tonnes
import dev.tideline.core.into

private val MONDAY = Moment.of(day = 7, hour = 8)

private fun box(name: String, days: Int, chilled: Boolean = false): Container =
    Container(
        id = ContainerId(name),
        weight = Tonnes(18.0),
        leavesAt = MONDAY + Span.ofDays(days),
        chilled = chilled,
    )

/** Describes where containers are put and what it costs to get them back. */
class ContainerYardSpec : Spec({
    fun yardOf(vararg stacks: Stack): ContainerYard {
        val store = InMemoryStackStore()
        stacks.forEach { store.add(it) }
        return ContainerYard(stacks = store, events = Events(), clock = StillClock(MONDAY))
    }

    val plain = Stack(id = StackId("A1"), powered = false, tiers = 2)
    val powered = Stack(id = StackId("R1"), powered = true, tiers = 2)

    case("a container that leaves early goes on top of one that leaves late") {
        val yard = given("a yard with one stack") { yardOf(plain) }
        yard.stack(box("late", days = 9))
        yard.stack(box("early", days = 2))
        expect(yard.fetch(ContainerId("early"))).toGive(0)
    }

    case("a container at the bottom costs a reshuffle") {
        val yard = given("a yard with one stack") { yardOf(plain) }
        yard.stack(box("bottom", days = 1))
        yard.stack(box("top", days = 5))
        expect(yard.fetch(ContainerId("bottom"))).toGive(1)
        expect(yard.fetch(ContainerId("bottom"))).toBeRefusedFor(Reason.NOT_FOUND)
    }

    case("chilled containers need power") {
        val dark = given("a yard without power") { yardOf(plain) }
        val mixed = given("a yard with both kinds of stacks") { yardOf(plain, powered) }
        expect(dark.stack(box("fish", days = 1, chilled = true))).toBeRefusedFor(Reason.FULL)
        expect(mixed.stack(box("fish", days = 1, chilled = true)).into { it.id }).toGive(powered.id)
        expect(mixed.stack(box("shoes", days = 1)).into { it.id }).toGive(plain.id)
    }
})
